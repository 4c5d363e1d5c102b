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
from imprint.dist.world import current
from imprint.losses.info_nce import contrast_accuracy, info_nce_queue
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, one_group
from imprint.nn.branch import Branch
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import ProjectionMLP
from imprint.nn.queue import KeyQueue
from imprint.nn.split_norm import average_running_, encode_keys, split_norms_
from imprint.ops.spread import agreement


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
        self.query = Branch(encoder, ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.projection), norm=False))
        split_norms_(self.query, cfg.norm_groups)
        self.key = frozen_copy(self.query)
        self.queue = KeyQueue(cfg.projection, cfg.queue)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """A query and a key view of one distribution: crop, flip, colour, grey, blur (Sec. 3)."""
        assert isinstance(cfg, MoCoV2Config)
        return mocov2_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Find the key of the same image among the queue's (MoCo, Eq. 1), then put the new keys in for the oldest."""
        if self.training:
            self.queue.check(len(batch) * current().size)
        views_VBCHW = batch.views["global"]
        q_BD = self.query(views_VBCHW[:1])[0]
        k_BD, k_AD = encode_keys(self.key, views_VBCHW[1:], t.step, shuffle=self.cfg.shuffle)
        queue, filled = self.queue.keys, self.queue.filled
        loss = info_nce_queue(q_BD, k_BD, queue, self.cfg.temperature, filled=filled)
        few = slice(0, 16)  # enough rows of a shuffled batch for a monitor
        metrics = agreement(q_BD.detach(), k_BD)
        metrics["moco/accuracy"] = contrast_accuracy(q_BD[few], k_BD[few], queue, filled)
        metrics["moco/queue_filled"] = filled / self.queue.size
        if self.training:
            self.queue.push_(k_AD)  # after use: negatives are of earlier batches
        return StepOutput(loss, metrics)

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the key encoder: theta_k <- m theta_k + (1 - m) theta_q (MoCo, Eq. 2).

        The public code does so at the start of the next forward pass, before the keys are encoded: the same weights
        meet the same images. Its update before the very first pass mixes two equal networks and changes nothing.
        """
        ema_update_(self.key, self.query, self.cfg.momentum(t.at(t.step + 1)))
        average_running_(self)

    def param_groups(self) -> list[ParamGroup]:
        """Decay all parameters, norms and biases, too (public code: one group)."""
        return one_group(self.named_parameters())

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name a key encoder that is too fast, and batch statistics that query and key share."""
        assert isinstance(cfg, MoCoV2Config)
        found = []
        if cfg.momentum.start < 0.9:
            found.append(
                f"momentum starts at {cfg.momentum.start:g}: a key encoder that changes so fast leaves the queue's "
                "keys inconsistent and training fails or loses (arXiv 1911.05722, Sec. 4.1); set "
                "--method.momentum.start 0.99 or more"
            )
        if cfg.norm_groups == 1:
            found.append(
                "norm_groups is 1: query and key share the statistics of the whole batch, by which the positive can be "
                "told from the queue without looking at the image (arXiv 1911.05722, Sec. 3.3); set "
                "--method.norm-groups 8"
            )
        elif not cfg.shuffle:
            found.append(
                "shuffle is off: query and key share their group's batch statistics, by which the positive can be told "
                "without looking at the image (arXiv 1911.05722, Sec. 3.3); set --method.shuffle True"
            )
        return tuple(found)

    @property
    def encoder(self) -> Encoder:
        """The query encoder; the head is thrown away."""
        return self.query.backbone
