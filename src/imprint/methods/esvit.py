"""EsViT: efficient self-supervised vision transformers.

Li, Yang, Zhang, Gao, Xiao, Dai, Yuan, Gao 2021, arXiv 2106.09785. DINO's view task on a multi-stage transformer, and a
region task: each region of the student's view matches the teacher's distribution at the most similar region of another.

Any encoder with a map of regions serves: Swin, as in the paper, plain ViTs, CNNs. Where the public code
(microsoft/esvit) says more than the paper, the code is followed: regions are matched by the cosine of the backbones'
features, not of the heads'; both tasks share their temperatures; the region centre is the mean over all regions.

Shape suffixes: V student views, W teacher views, B images, T regions of a view, D width, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, Features
from imprint.core.progress import Duration, Epochs, Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.view_recipes import dino_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.distillation import cross_view_cross_entropy, teacher_entropy, teacher_statistics
from imprint.losses.esvit import region_cross_entropy
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.center import RunningMean
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import PrototypeHead


@dataclass(frozen=True, kw_only=True)
class EsViTConfig(MethodConfig):
    """EsViT's choices.

    Attributes:
        prototypes: K of both heads (public code, --out_dim).
        hidden: width of the heads' hidden layers.
        bottleneck: width before the prototypes.
        train_gain: train the prototypes' weight-norm gain (public commands for Swin: --norm_last_layer false).
        student_temp: tau_s of both tasks.
        teacher_temp: tau_t of both tasks, warmed up linearly; constant within an epoch.
        center_momentum: m of both centres.
        momentum: EMA momentum of the teacher.
        freeze_prototypes: the last layers learn nothing for this long (public code, --freeze_last_layer).
        region_weight: share of the region task in the loss, the view task has the rest (Sec. 3.2: 1/2); 0 is DINO.
        region_start: before, the view task alone (the public windows of 14 add the region task after 200 epochs).
        global_scale: area share of the two large crops.
        local_crops: number of small crops.
        local_scale: area share of the small crops.
        local_size: side of the small crops in pixels.
        colour: factor on the colour jitter.
        blur: factor on the blur probabilities (0 for images of 32 pixels).
    """

    prototypes: int = 65_536
    hidden: int = 2048
    bottleneck: int = 256
    train_gain: bool = False
    student_temp: float = 0.1
    teacher_temp: Schedule = field(
        default_factory=lambda: Schedule(
            start=0.07, shape="constant", warmup=Epochs(30), warmup_from=0.04, warmup_reaches_start=True, per_epoch=True
        )
    )
    center_momentum: float = 0.9
    momentum: Schedule = field(default_factory=lambda: cosine(0.996, 1.0))
    freeze_prototypes: Duration = Epochs(1)
    region_weight: float = 0.5
    region_start: Duration = Epochs(0)
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_crops: int = 8
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_size: int = 96
    colour: float = 1.0
    blur: float = 1.0


class Network(nn.Module):
    """A backbone with a view head h_V on its pooled features and a region head h_R on its map (Sec. 3.2)."""

    def __init__(self, backbone: Encoder, cfg: EsViTConfig) -> None:
        super().__init__()
        self.backbone = backbone
        width = int(getattr(backbone, "patch_dim", backbone.embed_dim))  # a few CNNs pool into another width
        sizes = (cfg.hidden, cfg.bottleneck, cfg.prototypes)
        self.view_head = PrototypeHead(backbone.embed_dim, *sizes, train_gain=cfg.train_gain)
        self.region_head = PrototypeHead(width, *sizes, train_gain=cfg.train_gain)

    def view_logits(self, seen: list[Features]) -> Tensor:
        """Return the logits (crops, K) of whole views."""
        logits: Tensor = self.view_head(torch.cat([f.pooled_BD for f in seen]))
        return logits

    def region_logits(self, seen: Features, batch: int) -> Tensor:
        """Return the logits (V, B, T, K) of the regions of views of one resolution."""
        logits: Tensor = self.region_head(seen.patches_BND.flatten(0, 1))
        return logits.unflatten(0, (-1, batch, seen.patches_BND.shape[1]))


class EsViT(Method):
    """Student and teacher with two heads each, DINO's loss on views and its like on matched regions (Eqs. 2 and 3)."""

    Config: ClassVar[type[MethodConfig]] = EsViTConfig
    clipping: ClassVar[Clipping] = "tensor"  # utils.clip_gradients of the public code clips every tensor by itself

    def __init__(self, cfg: EsViTConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.student = Network(encoder, cfg)
        self.teacher = frozen_copy(self.student)
        self.center = RunningMean(cfg.prototypes, cfg.center_momentum)
        self.region_center = RunningMean(cfg.prototypes, cfg.center_momentum)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """DINO's multi-crop."""
        assert isinstance(cfg, EsViTConfig)
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
        """Match views (Eq. 2) and, within each pair of different views, regions to their best match (Eq. 3)."""
        cfg = self.cfg
        crops = [batch.views[name].flatten(0, 1) for name in ("global", "local") if name in batch.views]
        count = len(batch)
        regions = cfg.region_weight > 0 and not t.before(cfg.region_start)
        temps = (cfg.student_temp, cfg.teacher_temp(t))

        with torch.no_grad():
            whole = self.teacher.backbone(crops[0])
            teacher_WBK = self.teacher.view_logits([whole]).unflatten(0, (-1, count))
        seen = self.student.backbone.encode_many(crops)
        student_VBK = self.student.view_logits(seen).unflatten(0, (-1, count))

        few = slice(0, 16)  # enough rows of a shuffled batch for a monitor
        metrics = teacher_statistics(student_VBK[:, few].detach(), teacher_WBK[:, few], self.center.value, *temps)
        loss = cross_view_cross_entropy(student_VBK, teacher_WBK, self.center.value, *temps, overwrite=True)
        metrics["view_loss"] = loss.detach()
        if regions:
            region_loss, teacher_WBTK = self._region_loss(seen, whole, count, temps)
            metrics["region_loss"] = region_loss.detach()
            some_WBTK = teacher_WBTK[:, :4]
            metrics["region_teacher_entropy"] = teacher_entropy(
                some_WBTK.flatten(1, 2), self.region_center.value, temps[1]
            )
            loss = (1.0 - cfg.region_weight) * loss + cfg.region_weight * region_loss
        else:  # all parameters of every process belong to the graph; `before_optimizer_step` drops these gradients
            loss = loss + 0.0 * sum(p.sum() for p in self.student.region_head.parameters() if p.requires_grad)
        if self.training:  # after use: this batch is centred by the past
            self.center.update_(teacher_WBK, all_reduce_mean)
            if regions:
                self.region_center.update_(teacher_WBTK, all_reduce_mean)
        return StepOutput(loss, {f"esvit/{name}": value for name, value in metrics.items()})

    def _region_loss(
        self, seen: list[Features], whole: Features, count: int, temps: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Return the region loss and the teacher's region logits."""
        with torch.no_grad():
            teacher_WBTK = self.teacher.region_logits(whole, count)
        loss = region_cross_entropy(
            [self.student.region_logits(f, count) for f in seen],
            [f.patches_BND.detach().unflatten(0, (-1, count)) for f in seen],
            teacher_WBTK,
            whole.patches_BND.unflatten(0, (-1, count)),
            self.region_center.value,
            *temps,
            overwrite=True,
        )
        return loss, teacher_WBTK

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze what does not learn yet: no gradient at all, so that weight decay skips it too."""
        cfg = self.cfg
        idle: list[nn.Module] = []
        if t.before(cfg.freeze_prototypes):
            idle += [self.student.view_head.prototypes, self.student.region_head.prototypes]
        if cfg.region_weight == 0 or t.before(cfg.region_start):
            idle += [self.student.region_head]
        for module in idle:
            for parameter in module.parameters():
                parameter.grad = None

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the teacher: theta_t <- m theta_t + (1 - m) theta_s."""
        ema_update_(self.teacher, self.student, self.cfg.momentum(t))

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Sharpening is what keeps targets from becoming uniform."""
        assert isinstance(cfg, EsViTConfig)
        if cfg.teacher_temp.start < cfg.student_temp:
            return ()
        return ("the teacher is not sharper than the student; set teacher_temp below student_temp",)

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms, as DINO's code does."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """The teacher's backbone."""
        return self.teacher.backbone
