"""I-JEPA: self-supervised learning from images with a joint-embedding predictive architecture.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas 2023, arXiv 2301.08243. From the patches of one context
block a narrow predictor says what an EMA copy of the encoder, which sees the whole image, puts at the patches of
several target blocks. No views, no colours, no pixels.

Where paper and public code (facebookresearch/ijepa) differ the code is followed: smooth-L1 instead of squared error,
targets normalised per token.

The paper's encoders have no class token, and the mean of the patches stands for the image. An encoder with one works:
its token takes part in attention, is not handed to the predictor and is not predicted.

Shape suffixes: T target blocks, B images, M patches of the context, K patches of a block, N patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.errors import ConfigError, unknown
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, RandomMask, TargetsMask
from imprint.data.views import Crop, View
from imprint.losses.ijepa import Distance, block_prediction, block_targets
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.predictor import Predictor
from imprint.ops.masking import by_row, keep_from_mask
from imprint.ops.patchify import patchify

Layout = Literal["multiblock", "block", "random", "rasterized"]
HIDDEN = 0.6
"""Share of the patches that the layouts `block` and `random` ask for (Table 6)."""


@dataclass(frozen=True, kw_only=True)
class IJEPAConfig(MethodConfig):
    """I-JEPA's choices.

    Attributes:
        layout: `multiblock` (Sec. 3), or one of Table 6's others, which lose: one large `block`, `random` patches,
            three quadrants from the fourth (`rasterized`).
        targets: number of target blocks (Sec. 3).
        target_scale: bounds of a block's share of the patches (Sec. 3, Table 8).
        target_aspect: bounds of its aspect ratio (Sec. 3).
        context_scale: bounds of the context block's share, targets taken out afterwards (Sec. 3, Table 9).
        min_keep: fewest patches of a context (public code).
        target: what is predicted: the target encoder's tokens, or the `pixels` of the patches, normalised within each
            (Table 7: loses).
        distance: `smooth_l1` (public code) or `l2` (Sec. 3).
        predictor_width: width of the predictor (App. A; Table 14).
        predictor_depth: its number of blocks: 6 for ViT-B, 12 for ViT-L and H (App. A).
        predictor_heads: its attention heads, as many as the encoder's (public code).
        momentum: EMA momentum of the target encoder, a straight line (App. A).
        crop_scale: area share of the crop, the only augmentation (public configuration).
    """

    layout: Layout = "multiblock"
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    target: Literal["tokens", "pixels"] = "tokens"
    distance: Distance = "smooth_l1"
    predictor_width: int = 384
    predictor_depth: int = 6
    predictor_heads: int = 12
    momentum: Schedule = field(default_factory=lambda: Schedule(start=0.996, end=1.0, shape="linear", stretch=1.25))
    crop_scale: tuple[float, float] = (0.3, 1.0)


class IJEPA(Method):
    """Context encoder, EMA target encoder, predictor over target blocks (Sec. 3, Fig. 3)."""

    Config: ClassVar[type[MethodConfig]] = IJEPAConfig
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: IJEPAConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "ijepa", ("simclr", "byol"), drop=True)
        if cfg.target not in ("tokens", "pixels"):
            raise unknown("target", str(cfg.target), ("tokens", "pixels"))
        side = encoder.image_size // encoder.patch_size
        self.cfg = cfg
        self.context = encoder
        self.target = frozen_copy(encoder)
        self.predictor = Predictor(
            encoder.embed_dim,
            cfg.predictor_width,
            cfg.predictor_depth,
            cfg.predictor_heads,
            (side, side),
            encoder.embed_dim if cfg.target == "tokens" else encoder.patch_size**2 * encoder.channels,
        )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop, not even flipped (public configuration)."""
        assert isinstance(cfg, IJEPAConfig)
        return (View(name="global", crop=Crop(size=image_size, scale=cfg.crop_scale)),)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Targets and context of the layout; quadrants need no drawing here."""
        assert isinstance(cfg, IJEPAConfig)
        side = image_size // patch_size
        if cfg.layout not in get_args(Layout):
            raise unknown("layout", str(cfg.layout), get_args(Layout))
        if cfg.layout == "random":
            return (RandomMask(name="global", grid=(side, side), ratio=HIDDEN),)
        if cfg.layout == "rasterized":
            if side % 2:
                raise ConfigError(f"layout rasterized needs a grid of an even side, not {side} x {side} patches.")
            return ()
        alone = cfg.layout == "block"
        return (
            TargetsMask(
                name="global",
                grid=(side, side),
                targets=1 if alone else cfg.targets,
                target_scale=(HIDDEN, HIDDEN) if alone else cfg.target_scale,
                target_aspect=cfg.target_aspect,
                context_scale=(1.0, 1.0) if alone else cfg.context_scale,
                min_keep=1 if alone else cfg.min_keep,
                overlap=alone,  # its context is not used: it is all that the target leaves
            ),
        )

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Predict the targets of all blocks from the context (Sec. 3)."""
        images = batch.views["global"][0]
        context_BM, targets_TBK = self.places(batch)
        with torch.no_grad():
            every_BND = (
                self.target(images).patches_BND
                if self.cfg.target == "tokens"
                else patchify(images, self.context.patch_size)
            )
            target_TBKD = block_targets(every_BND, targets_TBK)
        seen_BMD = self.context(images, keep_BM=context_BM).patches_BND
        pred_SKD = self.predictor(seen_BMD, context_BM, targets_TBK)
        loss = block_prediction(pred_SKD, target_TBKD, self.cfg.distance)
        with torch.no_grad():
            few = target_TBKD[0, :16].flatten(0, 1)  # enough for a monitor
            # Of normalised tokens: 1 is spread, 0 when all tokens are the same.
            metrics = {"ijepa/target_std": few.std(dim=0).mean() if len(few) > 1 else few.new_zeros(())}
        return StepOutput(loss, metrics)

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the places of the context (B, M) and of the targets (T, B, K), int64; no device is waited for."""
        if self.cfg.layout == "rasterized":
            return self._quadrants(batch.views["global"][0])
        mask_TBN = batch.masks["global"]
        targets_TBK = by_row(batch.places["global"], mask_TBN)
        if self.cfg.layout == "multiblock":
            return by_row(batch.places["global:context"], batch.masks["global:context"])[0], targets_TBK
        rest = mask_TBN.shape[-1] - targets_TBK.shape[-1]
        return keep_from_mask(mask_TBN[0], rest), targets_TBK

    def _quadrants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return one quadrant of each image, drawn here, and the three others."""
        half = images.shape[-1] // self.context.patch_size // 2
        square = torch.arange(half, device=images.device)
        first = (square[:, None] * (2 * half) + square).flatten()
        corner = torch.arange(2, device=images.device) * half
        table_4K = (corner[:, None] * (2 * half) + corner).flatten()[:, None] + first
        chosen_B = torch.randint(4, (images.shape[0],), device=images.device)
        turns_T1 = torch.arange(1, 4, device=images.device)[:, None]
        return table_4K[chosen_B], table_4K[(chosen_B + turns_T1) % 4]

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the target encoder: theta_t <- m theta_t + (1 - m) theta_c."""
        ema_update_(self.target, self.context, self.cfg.momentum(t))

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms; the public code decays the mask token."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """A target that is the context encoder itself can make all tokens equal."""
        assert isinstance(cfg, IJEPAConfig)
        if cfg.target == "pixels" or cfg.momentum.start > 0:
            return ()
        return (
            "momentum starts at 0: the target encoder is a copy of the context encoder, and nothing keeps the tokens "
            "apart (arXiv 2301.08243, Sec. 3); set --method.momentum.start 0.996",
        )

    @property
    def encoder(self) -> Encoder:
        """The target encoder, which the paper evaluates (App. A)."""
        return self.target
