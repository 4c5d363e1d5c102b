"""Shuffle and learn: unsupervised learning using temporal order verification.

Misra, Zitnick, Hebert 2016, arXiv 1603.08561. Three frames of a video pass through one encoder, and a classifier on
their features tells whether they are in order. Settings follow the paper and imisra/shuffle-tuple, which has the
network and its training but not how tuples are made: what the paper leaves open there is marked below.

Shapes: B clips, 5 frames (a, b, c, d, e) of each, 3 of them shown, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import Clip, Crop, Look
from imprint.losses.frame_order import Tuples, balanced_accuracy, choose_tuples, order_loss
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.heads import ProjectionMLP
from imprint.ops.keyed import keyed_uniforms


@dataclass(frozen=True, kw_only=True)
class FrameOrderConfig(MethodConfig):
    """Frame-order verification's choices; times are in frames of the video.

    Attributes:
        tau_max: most frames between b and d (the paper: 60); c lies at least a sixth of it from both (ours).
        tau_min: least frames between a and b, and d and e (the paper: 15); at most twice that (ours).
        negatives: share of tuples out of order (the paper: 75 %).
        reverse: share of tuples shown backwards, which are in order as well (the paper).
        least_change: mean square difference of normalised pixels below which a frame looks like c and is not put in its
            place (the paper compares squared differences of RGB, without a number).
        motion: draw windows in proportion to their motion (the paper by optical flow; here by differences of frames).
        fusion: width of a hidden layer between the three features and the classifier; 0 for the linear classifier of
            the paper.
        crop_scale: area share of the crop, the same for all frames (the public code: 227 px of 340 x 255).
        flip: probability of a horizontal flip of all frames (the public code's data layer leaves it to the user).
    """

    tau_max: int = 60
    tau_min: int = 15
    negatives: float = 0.75
    reverse: float = 0.5
    least_change: float = 0.01
    motion: bool = True
    fusion: int = 0
    crop_scale: tuple[float, float] = (0.594, 0.594)
    flip: float = 0.5


class FrameOrder(Method):
    """A triplet of frames through one encoder, features side by side, in order or not (Fig. 1)."""

    Config: ClassVar[type[MethodConfig]] = FrameOrderConfig

    def __init__(self, cfg: FrameOrderConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = encoder
        width = 3 * encoder.embed_dim
        self.classifier: nn.Module = ProjectionMLP((width, cfg.fusion, 2)) if cfg.fusion else nn.Linear(width, 2)

    @classmethod
    def clips(cls, cfg: MethodConfig, image_size: int) -> tuple[Clip, ...]:
        """Five frames a < b < c < d < e at drawn distances, cut alike.

        Raises:
            ConfigError: for distances that leave no room for five frames.
        """
        assert isinstance(cfg, FrameOrderConfig)
        if cfg.tau_max < 2 or cfg.tau_min < 1:
            raise ConfigError(
                f"frame_order needs --method.tau-max of 2 or more and --method.tau-min of 1 or more, got {cfg.tau_max} "
                f"and {cfg.tau_min}."
            )
        outer, inner = (cfg.tau_min, 2 * cfg.tau_min), (max(1, cfg.tau_max // 6), cfg.tau_max // 2)
        crop = Crop(size=image_size, scale=cfg.crop_scale, ratio=(1.0, 1.0))
        gaps = (outer, inner, inner, outer)
        return (Clip(name="five", frames=5, gaps=gaps, motion=cfg.motion, crop=crop, look=Look(flip=cfg.flip)),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Choose tuples, encode their frames, tell the order."""
        tuples = self.choose(batch, t)
        logits_B2 = self.tell(batch.clips["five"][0], tuples)
        loss = order_loss(logits_B2, tuples.ordered_B)
        seen = logits_B2.detach()
        return StepOutput(
            loss,
            {
                "frame_order/accuracy": seen.argmax(1).eq(tuples.ordered_B).float().mean(),
                "frame_order/balanced_accuracy": balanced_accuracy(seen, tuples.ordered_B),
            },
        )

    @torch.no_grad()
    def choose(self, batch: Batch, t: Progress) -> Tuples:
        """Return which frames are shown: a function of step and sample, not of the process."""
        cfg, frames_B5CHW = self.cfg, batch.clips["five"][0]
        change_B2 = (frames_B5CHW[:, [0, 4]] - frames_B5CHW[:, 2:3]).square().mean((2, 3, 4))
        drawn_B3 = keyed_uniforms(seed_of("frame_order", t.step), batch.index_B, 3)
        return choose_tuples(drawn_B3, change_B2 < cfg.least_change, negatives=cfg.negatives, reverse=cfg.reverse)

    def tell(self, frames_B5CHW: Tensor, tuples: Tuples) -> Tensor:
        """Return logits (B, 2) of out of order and in order."""
        rows_B1 = torch.arange(len(frames_B5CHW), device=frames_B5CHW.device)[:, None]
        shown_B3CHW = frames_B5CHW[rows_B1, tuples.frames_B3]
        pooled_ND = self.backbone(shown_B3CHW.flatten(0, 1)).pooled_BD
        logits: Tensor = self.classifier(pooled_ND.unflatten(0, (-1, 3)).flatten(1))
        return logits

    @property
    def encoder(self) -> Encoder:
        """The encoder of a single frame; the classifier is thrown away."""
        return self.backbone
