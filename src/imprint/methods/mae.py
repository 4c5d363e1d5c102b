"""MAE: masked autoencoders are scalable vision learners.

He, Chen, Xie, Li, Dollar, Girshick 2021, arXiv 2111.06377. The encoder sees a quarter of the patches; a light decoder
predicts the pixels of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder, Features, require_tokens
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, RandomMask
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.losses.reconstruction import masked_patch_mse
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.decoder import PixelDecoder
from imprint.ops.masking import order_from_mask
from imprint.ops.patchify import denormalise_patches, normalise_patches, patchify, unpatchify


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MethodConfig):
    """MAE's choices.

    Attributes:
        mask_ratio: share of patches that the encoder never sees (Sec. 3, Fig. 5).
        normalise_targets: predict pixels normalised within each patch (Sec. 3, Table 1d).
        decoder_width: width of the decoder (Table 1b).
        decoder_depth: its number of blocks (Table 1a).
        decoder_heads: its attention heads (public code).
        crop_scale: area share of the crop (App. A.1; crop and flip are the only augmentation).
    """

    mask_ratio: float = 0.75
    normalise_targets: bool = True
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    crop_scale: tuple[float, float] = (0.2, 1.0)


class MAE(Method):
    """Encoder on the visible patches, decoder on all, mean squared error on the masked ones (Sec. 3)."""

    Config: ClassVar[type[MethodConfig]] = MAEConfig
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: MAEConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "mae", ("simclr", "dino"), drop=True)
        self.cfg = cfg
        self.backbone = encoder
        side = encoder.image_size // encoder.patch_size
        self.decoder = PixelDecoder(
            encoder.embed_dim,
            cfg.decoder_width,
            cfg.decoder_depth,
            cfg.decoder_heads,
            (side, side),
            encoder.patch_size**2 * encoder.channels,
        )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip."""
        assert isinstance(cfg, MAEConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Uniformly random patches, without replacement."""
        assert isinstance(cfg, MAEConfig)
        side = image_size // patch_size
        return (RandomMask(name="global", grid=(side, side), ratio=cfg.mask_ratio),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Encode the visible patches, decode all, compare the masked ones."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        pred_BNP, _ = self.predict(images, mask_BN)
        target_BNP = patchify(images, self.backbone.patch_size)
        if self.cfg.normalise_targets:
            target_BNP = normalise_patches(target_BNP)
        loss = masked_patch_mse(pred_BNP, target_BNP, mask_BN)
        return StepOutput(loss, {})

    def predict(self, images: Tensor, mask_BN: Tensor) -> tuple[Tensor, Features]:
        """Return predictions for every patch (B, N, p * p * C) and the features of the visible ones."""
        keep = int(mask_BN.shape[1] * (1 - self.cfg.mask_ratio))
        keep_BM, restore_BN = order_from_mask(mask_BN, keep)
        features = self.backbone(images, keep_BM=keep_BM)
        first = features.cls_BD if features.cls_BD is not None else features.pooled_BD
        return self.decoder(first[:, None], features.patches_BND, restore_BN), features

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms; the public code decays the tokens."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """The encoder; it is used without masking afterwards."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, what the encoder saw of it, and the prediction with the visible patches kept."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        pred_BNP, _ = self.predict(images, mask_BN)
        patches_BNP = patchify(images, self.backbone.patch_size)
        if self.cfg.normalise_targets:
            pred_BNP = denormalise_patches(pred_BNP, patches_BNP)
        hidden = mask_BN[..., None]
        grid = (images.shape[-2] // self.backbone.patch_size, images.shape[-1] // self.backbone.patch_size)

        def picture(x_BNP: Tensor) -> Tensor:
            return unpatchify(x_BNP, self.backbone.patch_size, grid)

        return {
            "image": images,
            "visible": picture(patches_BNP.masked_fill(hidden, 0.0)),
            "reconstruction": picture(torch.where(hidden, pred_BNP.to(patches_BNP.dtype), patches_BNP)),
        }
