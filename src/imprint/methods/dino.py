"""DINO: self-distillation with no labels.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin 2021, arXiv 2104.14294. A student sees all crops, an EMA
teacher the two large ones; the student matches the teacher's centred and sharpened distribution over K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Duration, Epochs, Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.view_recipes import dino_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.distillation import cross_view_cross_entropy, teacher_statistics
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.branch import Branch
from imprint.nn.center import RunningMean
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import PrototypeHead


@dataclass(frozen=True, kw_only=True)
class DINOConfig(MethodConfig):
    """DINO's choices.

    Attributes:
        prototypes: K (Sec. 3.1, App. C).
        hidden: width of the head's hidden layers.
        bottleneck: width before the prototypes.
        train_gain: train the prototypes' weight-norm gain (the public recipe for ViT-S); otherwise it stays 1.
        head_norm: BatchNorm in the head (off for ViTs: the whole system has no BatchNorm).
        student_temp: tau_s.
        teacher_temp: tau_t, warmed up linearly; public code keeps it constant within an epoch.
        center_momentum: m of the centre (Eq. 4).
        momentum: EMA momentum of the teacher (Sec. 3.1).
        freeze_prototypes: the last layer learns nothing for this long (public code, --freeze_last_layer).
        global_scale: area share of the two large crops.
        local_crops: number of small crops.
        local_scale: area share of the small crops.
        local_size: side of the small crops in pixels, a multiple of the patch size.
        colour: factor on the colour jitter.
        blur: factor on the blur probabilities (0 for images of 32 pixels).
    """

    prototypes: int = 65_536
    hidden: int = 2048
    bottleneck: int = 256
    train_gain: bool = False
    head_norm: bool = False
    student_temp: float = 0.1
    teacher_temp: Schedule = field(
        default_factory=lambda: Schedule(
            start=0.07, shape="constant", warmup=Epochs(30), warmup_from=0.04, warmup_reaches_start=True, per_epoch=True
        )
    )
    center_momentum: float = 0.9
    momentum: Schedule = field(default_factory=lambda: cosine(0.996, 1.0))
    freeze_prototypes: Duration = Epochs(1)
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_crops: int = 8
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_size: int = 96
    colour: float = 1.0
    blur: float = 1.0


class DINO(Method):
    """Student and teacher of one architecture, a centre, and cross-entropy over pairs of views (Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = DINOConfig
    clipping: ClassVar[Clipping] = "tensor"  # utils.clip_gradients of the public code clips every tensor by itself

    def __init__(self, cfg: DINOConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        head = PrototypeHead(
            encoder.embed_dim,
            cfg.hidden,
            cfg.bottleneck,
            cfg.prototypes,
            train_gain=cfg.train_gain,
            norm=cfg.head_norm,
        )
        self.student = Branch(encoder, head)
        self.teacher = frozen_copy(self.student)
        self.center = RunningMean(cfg.prototypes, cfg.center_momentum)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two large crops of different looks and several small ones (multi-crop, Sec. 3.1)."""
        assert isinstance(cfg, DINOConfig)
        return dino_views(
            image_size,
            local_size=cfg.local_size,
            local_crops=cfg.local_crops,
            global_scale=cfg.global_scale,
            local_scale=cfg.local_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Match the student's view v to the teacher's view w for all v != w (Eq. 3)."""
        with torch.no_grad():
            teacher_WBK = self.teacher(batch.views["global"])
        student_VBK = self.student(*(batch.views[name] for name in ("global", "local") if name in batch.views))
        teacher_temp = self.cfg.teacher_temp(t)
        temps = (self.cfg.student_temp, teacher_temp)
        few = slice(0, 16)  # enough rows of a shuffled batch for a monitor; all of them would be one more pass
        metrics = teacher_statistics(student_VBK[:, few].detach(), teacher_WBK[:, few], self.center.value, *temps)
        loss = cross_view_cross_entropy(student_VBK, teacher_WBK, self.center.value, *temps, overwrite=True)
        if self.training:
            self.center.update_(teacher_WBK, all_reduce_mean)  # after use: this batch is centred by the past
        metrics["center_norm"] = self.center.value.norm()
        return StepOutput(loss, {f"dino/{name}": value for name, value in metrics.items()})

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes early on: no gradient at all, so that weight decay skips them too."""
        head = self.student.head
        assert isinstance(head, PrototypeHead)
        if t.before(self.cfg.freeze_prototypes):
            for parameter in head.prototypes.parameters():
                parameter.grad = None

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher: theta_t <- m theta_t + (1 - m) theta_s."""
        ema_update_(self.teacher, self.student, self.cfg.momentum(t))

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms; the public code decays class token and positions."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """The teacher's backbone, the better one throughout training (Fig. 6)."""
        return self.teacher.backbone
