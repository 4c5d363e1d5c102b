"""SimMIM: a simple framework for masked image modeling.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu 2021, arXiv 2111.09886. Random squares of an image are replaced by a learned
token before the first block; a linear layer on the encoder's output regresses their pixels.

Shapes: B images, N = gh * gw places of the encoder's last grid, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import BlockMask, Mask, UnitMask
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.simmim import masked_pixel_loss
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.pixel_head import PixelHead


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(MethodConfig):
    """SimMIM's choices.

    Attributes:
        mask_ratio: share of the image that is masked (Sec. 4.1.2, Table 1).
        mask_unit: side of the masked squares in pixels (Sec. 3.2; Table 1: 32).
        mask_shape: `random` squares, or BEiT's `block` masks (Table 1: random is better).
        error: `l1` or `l2` on pixels (Sec. 3.4, Table 5).
        predict: pixels of the `masked` squares alone, or `all` (Sec. 4.1.4: masked is better).
        head_layers: linear layers of the prediction head (Sec. 4.1.3, Table 2: one suffices).
        crop_scale: area share of the crop (App. A; crop and flip are the only augmentation).
    """

    mask_ratio: float = 0.6
    mask_unit: int = 32
    mask_shape: Literal["random", "block"] = "random"
    error: Literal["l1", "l2"] = "l1"
    predict: Literal["masked", "all"] = "masked"
    head_layers: int = 1
    crop_scale: tuple[float, float] = (0.67, 1.0)


class SimMIM(Method):
    """Masked squares behind a learned token, a linear head to pixels, L1 on what was masked (Sec. 3)."""

    Config: ClassVar[type[MethodConfig]] = SimMIMConfig

    def __init__(self, cfg: SimMIMConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "simmim", ("simclr", "dino"), mask=True)
        encoder.enable_mask_token()
        self.cfg = cfg
        self.backbone = encoder
        self.head = PixelHead(encoder.embed_dim, encoder.patch_size, encoder.channels, cfg.head_layers)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip."""
        assert isinstance(cfg, SimMIMConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Random squares of whole patches, or blocks, on the encoder's last grid.

        Raises:
            ConfigError: when the squares do not hold whole patches, or the image not whole squares.
        """
        assert isinstance(cfg, SimMIMConfig)
        side = image_size // patch_size
        if cfg.mask_shape == "block":
            patches = math.ceil(cfg.mask_ratio * side * side)
            least = max(1, min(16, patches // 6))
            return (BlockMask(name="global", grid=(side, side), patches=patches, min_block=least),)
        if cfg.mask_unit % patch_size or image_size % cfg.mask_unit:
            raise ConfigError(
                f"simmim masks squares of {cfg.mask_unit} px, which must be a multiple of the encoder's patch or "
                f"stride ({patch_size} px) and divide the image ({image_size} px). Set --method.mask-unit, for example "
                f"to {patch_size}."
            )
        unit = cfg.mask_unit // patch_size
        return (UnitMask(name="global", grid=(side, side), unit=unit, ratio=cfg.mask_ratio),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Encode with the masked squares hidden, predict pixels, compare."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        pred_BCHW = self.predict(images, mask_BN)
        count = int(images.shape[3]) // self.backbone.patch_size
        counted_BN = mask_BN if self.cfg.predict == "masked" else torch.ones_like(mask_BN)
        # Blocks mask a number of patches that differs between images, so between processes, too.
        mass = all_reduce_mean(counted_BN.sum().float()) if self.cfg.mask_shape == "block" else None
        loss = masked_pixel_loss(
            pred_BCHW, images, counted_BN.unflatten(1, (-1, count)), error=self.cfg.error, mass=mass
        )
        return StepOutput(loss, {})

    def predict(self, images: Tensor, mask_BN: Tensor) -> Tensor:
        """Return predicted pixels (B, C, H, W) of the whole image."""
        features = self.backbone(images, mask_BN)
        pixels: Tensor = self.head(features.patches_BND, features.grid)
        return pixels

    @property
    def encoder(self) -> Encoder:
        """The encoder; it is used without masking afterwards."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, what the encoder saw of it, and the prediction with the visible squares kept."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        pred_BCHW = self.predict(images, mask_BN).to(images.dtype)
        side = self.backbone.patch_size
        grid_Bhw = mask_BN.unflatten(1, (-1, images.shape[3] // side))
        hidden_B1HW = grid_Bhw.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
        return {
            "image": images,
            "visible": images.masked_fill(hidden_B1HW, 0.0),
            "reconstruction": torch.where(hidden_B1HW, pred_BCHW, images),
        }
