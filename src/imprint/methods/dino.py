"""DINO: self-distillation with no labels.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin 2021, arXiv 2104.14294. A student sees all crops, an EMA
teacher the two large ones; the student matches the teacher's centred and sharpened distribution over K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Duration, Epochs, Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.view_recipes import dino_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.distillation import cross_view_cross_entropy, teacher_statistics
from imprint.losses.streamed import mean_logits, streamed_cross_view
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.branch import Branch
from imprint.nn.center import RunningMean
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import PrototypeHead

_MANY = 2**25
"""Logits of a batch (128 MB in float32) from which on they are not kept."""


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
        centring: subtract the centre from the teacher's logits; without it one prototype takes all (Sec. 5.3, Fig. 7).
        center_momentum: m of the centre (Eq. 4).
        teacher_update: how the teacher follows: an EMA of every step, or a copy of the student from the last `step` or
            the last `epoch` (Sec. 5.2, Fig. 6: the copy of a step does not converge, that of an epoch learns).
        momentum: EMA momentum of the teacher (Sec. 3.1).
        stream_prototypes: make logits and loss for some images at a time, so that memory does not grow with crops x
            prototypes; the same numbers. None does so from 2^25 logits on.
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
    centring: bool = True
    center_momentum: float = 0.9
    teacher_update: Literal["ema", "step", "epoch"] = "ema"
    momentum: Schedule = field(default_factory=lambda: cosine(0.996, 1.0))
    stream_prototypes: bool | None = None
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
            teacher_z_WBD = _vectors(self.teacher, batch.views["global"])
        z_VBD = _vectors(self.student, *(batch.views[name] for name in ("global", "local") if name in batch.views))
        prototypes, others = _head(self.student).prototypes, _head(self.teacher).prototypes
        center, temps = self.center.value, (self.cfg.student_temp, self.cfg.teacher_temp(t))
        stream = self.cfg.stream_prototypes
        if stream is None:
            stream = z_VBD.shape[0] * z_VBD.shape[1] * self.cfg.prototypes > _MANY
        few = slice(0, 4 if stream else 16)  # enough rows of a shuffled batch for a monitor
        if stream:
            weight_KD, other_KD = prototypes.normalised(), others.normalised()
            sample = F.linear(z_VBD[:, few].detach(), weight_KD.detach()), F.linear(teacher_z_WBD[:, few], other_KD)
            metrics = teacher_statistics(*sample, center, *temps)
            loss = streamed_cross_view(z_VBD, weight_KD, teacher_z_WBD, other_KD, center, *temps)
            teacher_WBK = mean_logits(teacher_z_WBD, other_KD)
        else:
            student_VBK, teacher_WBK = prototypes(z_VBD), others(teacher_z_WBD)
            metrics = teacher_statistics(student_VBK[:, few].detach(), teacher_WBK[:, few], center, *temps)
            loss = cross_view_cross_entropy(student_VBK, teacher_WBK, center, *temps, overwrite=True)
        if self.training and self.cfg.centring:
            self.center.update_(teacher_WBK, all_reduce_mean)  # after use: this batch is centred by the past
        metrics["center_norm"] = self.center.value.norm()
        return StepOutput(loss, {f"dino/{name}": value for name, value in metrics.items()})

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes early on: no gradient at all, so that weight decay skips them too."""
        if t.before(self.cfg.freeze_prototypes):
            for parameter in _head(self.student).prototypes.parameters():
                parameter.grad = None

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher: theta_t <- m theta_t + (1 - m) theta_s; or copy the student, as the ablation says."""
        if self.cfg.teacher_update == "ema":
            ema_update_(self.teacher, self.student, self.cfg.momentum(t))
        elif self.cfg.teacher_update == "step" or (t.step + 1) % t.steps_per_epoch == 0:
            ema_update_(self.teacher, self.student, 0.0)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Centring and sharpening hold each other in balance (Sec. 5.3); the teacher must lag behind (Sec. 5.2)."""
        assert isinstance(cfg, DINOConfig)
        found = []
        if not cfg.centring:
            found.append(
                "centring is off: one prototype takes all (arXiv 2104.14294, Sec. 5.3); set --method.centring True"
            )
        if cfg.teacher_temp.start >= cfg.student_temp:
            found.append(
                "the teacher is not sharper than the student: targets become uniform (Sec. 5.3); set teacher_temp lower"
            )
        if cfg.teacher_update == "step":
            found.append("the teacher is the student of the last step (Sec. 5.2); set --method.teacher-update ema")
        return tuple(found)

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms; the public code decays class token and positions."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """The teacher's backbone, the better one throughout training (Fig. 6)."""
        return self.teacher.backbone


def _head(branch: Branch) -> PrototypeHead:
    assert isinstance(branch.head, PrototypeHead)
    return branch.head


def _vectors(branch: Branch, *views_VBCHW: Tensor) -> Tensor:
    """Return the unit vectors before the prototypes, (V, B, D)."""
    return _head(branch).unit(branch.pooled(views_VBCHW)).unflatten(0, (-1, views_VBCHW[0].shape[1]))
