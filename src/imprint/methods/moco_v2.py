"""MoCo v2: improved baselines with momentum contrastive learning.

Chen, Fan, Girshick, He 2020, arXiv 2003.04297. MoCo (arXiv 1911.05722) with SimCLR's MLP head and blur: a query finds
its key among a queue of keys of earlier batches, made by an encoder that follows the query encoder slowly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule, constant
from imprint.data.batch import Batch
from imprint.data.view_recipes import mocov2_views
from imprint.data.views import View
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, one_group
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.nn.momentum_contrast import MomentumContrast, contrast_dangers


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config(MethodConfig):
    """MoCo v2's choices.

    Attributes:
        queue: K, keys that serve as negatives (MoCo, Sec. 4.1); a multiple of the batch size.
        temperature: tau of the loss (Sec. 3, Table 2: 0.2).
        momentum: m of the key encoder (MoCo, Sec. 4.1: 0.999).
        hidden: width of the head's hidden layer (Sec. 3: 2048, with ReLU, without BatchNorm).
        projection: width of query and key (MoCo, Sec. 3.3: 128).
        norm_groups: groups of the batch with batch-norm statistics of their own, over all processes, which must divide
            it (MoCo, Sec. 3.3: 8 GPUs, a group each); 1 takes statistics over the whole batch (synchronised BatchNorm).
        shuffle: put keys into other groups than their queries (ShuffleBN; MoCo, Sec. 3.3).
        crop_scale: bounds of the crop's area share (public code).
        colour: factor on the jitter; more than 1 does not help (Sec. 3).
        blur: probability of the Gaussian blur (Sec. 3: 0.5); None leaves it out for images up to 64 pixels.
    """

    queue: int = 65_536
    temperature: float = 0.2
    momentum: Schedule = field(default_factory=lambda: constant(0.999))
    hidden: int = 2048
    projection: int = 128
    norm_groups: int = 8
    shuffle: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    colour: float = 1.0
    blur: float | None = 0.5


class MoCoV2(Method):
    """Query encoder with an MLP head, slowly following key encoder, a queue, InfoNCE (MoCo, Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = MoCoV2Config

    def __init__(self, cfg: MoCoV2Config, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.contrast = MomentumContrast(
            Branch(encoder, ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.projection), norm=False)),
            width=cfg.projection,
            queue=cfg.queue,
            norm_groups=cfg.norm_groups,
            shuffle=cfg.shuffle,
        )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """A query and a key view of one distribution: crop, flip, colour, grey, blur (Sec. 3)."""
        assert isinstance(cfg, MoCoV2Config)
        return mocov2_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)

    def check_batch(self, rows: int) -> None:
        """The queue takes whole batches, and batch-norm groups share them evenly."""
        self.contrast.check_batch(rows)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Find the key of the same image among the queue's (MoCo, Eq. 1); the new keys replace the oldest."""
        loss, metrics = self.contrast(batch.views["global"], self.cfg.temperature, t.step)
        return StepOutput(loss, metrics)

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the key encoder (MoCo, Eq. 2).

        The public code does so at the start of the next forward pass, before the keys are encoded: the same weights
        meet the same images. Its update before the very first pass mixes two equal networks and changes nothing.
        """
        self.contrast.follow_(self.cfg.momentum(t.at(t.step + 1)))

    def param_groups(self) -> list[ParamGroup]:
        """Decay all parameters, norms and biases, too (public code: one group)."""
        return one_group(self.named_parameters())

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name a key encoder that is too fast, and batch statistics that query and key share."""
        assert isinstance(cfg, MoCoV2Config)
        return contrast_dangers(cfg.momentum.start, cfg.norm_groups, cfg.shuffle)

    @property
    def encoder(self) -> Encoder:
        """The query encoder without its head."""
        return self.contrast.query.backbone
