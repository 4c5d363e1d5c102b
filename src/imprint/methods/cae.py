"""CAE: context autoencoder for self-supervised representation learning.

Chen, Ding, Wang, Xin, Mo, Wang, Han, Luo, Zeng, Wang 2022, arXiv 2202.03026. The encoder sees the visible patches; a
regressor predicts the latents of the masked ones from theirs; a decoder turns these predictions alone into visual
tokens or pixels. The predictions are aligned with what the encoder itself makes of the masked patches.

The public code (lxtGH/CAE) refreshes the copy that encodes the masked patches after it was used, so its targets are one
step behind; here it is refreshed after the update and equals the encoder, as in the paper. The copy runs without
stochastic depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import BlockMask, Mask, RandomMask
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.losses.token_prediction import token_cross_entropy
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.regressor import LatentDecoder, LatentRegressor
from imprint.nn.tokenizers import RandomProjectionTokenizer, Tokenizer
from imprint.ops.masking import by_row, keep_from_mask, take_tokens
from imprint.ops.patchify import denormalise_patches, normalise_patches, patchify, unpatchify
from imprint.ops.positions import sincos_2d

MISSING = "cae takes its tokenizer from the run before it; name a dvae run by --start."


@dataclass(frozen=True, kw_only=True)
class CAEConfig(MethodConfig):
    """CAE's choices.

    Attributes:
        mask: blocks (Sec. 4.1, as BEiT's) or single patches (public code, --mask_generator).
        mask_ratio: share of patches to mask (Sec. 4.1: 98 of 196).
        min_block: fewest patches of a block (public code: 16); at most a quarter of the masked ones on small grids.
        target: visual tokens (Sec. 3.2), or the pixels of the masked patches.
        tokenizer: `random` projects patches at random; `previous` takes the tokenizer of the run that this one starts
            from (Sec. 4.1: a trained discrete VAE).
        vocabulary: codes of the random tokenizer (the discrete VAE's 8,192).
        normalise_targets: predict pixels normalised within each patch.
        align: weight of the alignment loss (Sec. 3.2: 2).
        momentum: of the copy that encodes the masked patches (public code: 0, a plain copy).
        regressor_depth: blocks of the regressor (Sec. 4.1).
        decoder_depth: blocks of the decoder (Sec. 4.1).
        heads: attention heads of both (public code: 12 for ViT-B).
        layer_scale: first value of LayerScale in both (public code: 0.1).
        drop_path: stochastic depth of both (App. A: 0.1).
        crop_scale: area share of the crop (public code).
    """

    mask: Literal["block", "random"] = "block"
    mask_ratio: float = 0.5
    min_block: int = 16
    target: Literal["tokens", "pixels"] = "tokens"
    tokenizer: Literal["random", "previous"] = "random"
    vocabulary: int = 8192
    normalise_targets: bool = True
    align: float = 2.0
    momentum: float = 0.0
    regressor_depth: int = 4
    decoder_depth: int = 4
    heads: int = 12
    layer_scale: float = 0.1
    drop_path: float = 0.1
    crop_scale: tuple[float, float] = (0.08, 1.0)


class CAE(Method):
    """Encoder on visible patches, regressor to the masked latents, decoder from these alone (Sec. 3.1)."""

    Config: ClassVar[type[MethodConfig]] = CAEConfig
    needs_tokens: ClassVar[bool] = True
    positions_ND: Tensor

    def __init__(self, cfg: CAEConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "cae", ("simclr", "dino"), drop=True)
        width, patch = encoder.embed_dim, encoder.patch_size
        if width % cfg.heads:
            raise ConfigError(
                f"{cfg.heads} heads do not divide the encoder's width {width}; choose --method.heads so that they do."
            )
        self.cfg = cfg
        self.backbone = encoder
        self.copy = frozen_copy(encoder)
        self.regressor = LatentRegressor(width, cfg.regressor_depth, cfg.heads, cfg.layer_scale, cfg.drop_path)
        self.decoder = LatentDecoder(width, cfg.decoder_depth, cfg.heads, cfg.layer_scale, cfg.drop_path)
        self.grid = (encoder.image_size // patch, encoder.image_size // patch)
        # Row first, as in the public code.
        self.register_buffer("positions_ND", sincos_2d(width, self.grid, layout="mocov3").float(), persistent=False)
        self.tokenizer: Tokenizer | None = None
        if cfg.target == "tokens" and cfg.tokenizer == "random":
            self.tokenizer = RandomProjectionTokenizer(patch, encoder.channels, cfg.vocabulary)
        self.head = _head(width, cfg.vocabulary if cfg.target == "tokens" else patch**2 * encoder.channels)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip; no change of colours (Sec. 4.1)."""
        assert isinstance(cfg, CAEConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """As many patches in every image, in blocks: both halves are encoded without padding."""
        assert isinstance(cfg, CAEConfig)
        grid = (image_size // patch_size, image_size // patch_size)
        if cfg.mask == "random":
            return (RandomMask(name="global", grid=grid, ratio=cfg.mask_ratio),)
        masked = round(cfg.mask_ratio * grid[0] * grid[1])
        block = min(cfg.min_block, max(1, masked // 4))
        return (BlockMask(name="global", grid=grid, patches=masked, min_block=block, exact=True),)

    def inherit(self, previous: Method) -> None:
        """Take the tokenizer of a run of another method (a discrete VAE), or go on from an earlier CAE."""
        if isinstance(previous, CAE):
            if previous.tokenizer is not None and self.cfg.tokenizer == "previous":
                self._take(previous.tokenizer)
            return super().inherit(previous)
        tokenizer = getattr(previous, "tokenizer", None)
        if not isinstance(tokenizer, Tokenizer) or self.cfg.target != "tokens" or self.cfg.tokenizer != "previous":
            raise ConfigError(
                "cae takes a tokenizer from the run before it (--method.tokenizer previous, --method.target tokens), "
                f"and {type(previous).__name__} {'has one' if tokenizer is not None else 'has none'}. Start from a "
                "dvae run, or set --method.tokenizer random without --start."
            )
        self._take(tokenizer)
        return None

    def _take(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = frozen_copy(tokenizer).eval()
        if self.head.out_features != tokenizer.vocabulary:
            self.head = _head(self.head.in_features, tokenizer.vocabulary)

    def train(self, mode: bool = True) -> CAE:
        """Switch to training or evaluation; the tokenizer is never trained."""
        super().train(mode)
        if self.tokenizer is not None:
            self.tokenizer.eval()
        return self

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return the decoding loss + 2 times the alignment loss (Sec. 3.2)."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        masked_BM = by_row(batch.places["global"], batch.masks["global"])[0]
        latents_BMD, hidden_BMD = self.predict(images, mask_BN, masked_BM)
        main, metrics = self._decoding(images, masked_BM, hidden_BMD)
        metrics["cae/decoding"] = main.detach()
        loss = main
        if self.cfg.align:
            with torch.no_grad():
                target_BMD = self.copy(images, keep_BM=masked_BM).patches_BND
            align = nn.functional.mse_loss(_wide(latents_BMD), _wide(target_BMD))
            loss = main + self.cfg.align * align
            metrics["cae/alignment"] = align.detach()
        return StepOutput(loss, metrics)

    def predict(self, images: Tensor, mask_BN: Tensor, masked_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted latents of the masked patches and what the decoder makes of them, both (B, M, D)."""
        visible_BV = keep_from_mask(mask_BN, mask_BN.shape[1] - masked_BM.shape[1])
        visible_BVD = self.backbone(images, keep_BM=visible_BV).patches_BND
        where_ND = self.positions_ND.to(visible_BVD.dtype)
        where_masked_BMD = where_ND[masked_BM]
        latents_BMD = self.regressor(visible_BVD, where_ND[visible_BV], where_masked_BMD)
        return latents_BMD, self.decoder(latents_BMD, where_masked_BMD)

    def _decoding(self, images: Tensor, masked_BM: Tensor, hidden_BMD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the masked patches' tokens, or the squared error of their pixels."""
        if self.cfg.target == "pixels":
            target_BMP = take_tokens(self._pixels(images), masked_BM)
            return nn.functional.mse_loss(_wide(self.head(hidden_BMD)), _wide(target_BMP)), {}
        target_BM = self._tokens(images).gather(1, masked_BM)
        loss, right = token_cross_entropy(
            hidden_BMD.flatten(0, 1), self.head.weight, target_BM.flatten(), self.head.bias
        )
        return loss, {"cae/tokens_right": right.detach()}

    def lacks(self) -> str | None:
        """What an earlier run must have left."""
        return MISSING if self.cfg.target == "tokens" and self.tokenizer is None else None

    def _pixels(self, images: Tensor) -> Tensor:
        patches_BNP = patchify(images, self.backbone.patch_size)
        return normalise_patches(patches_BNP) if self.cfg.normalise_targets else patches_BNP

    def _tokens(self, images: Tensor) -> Tensor:
        if self.tokenizer is None:
            raise ConfigError(MISSING)
        return self.tokenizer.encode_grid(images, self.grid)

    def after_optimizer_step(self, t: Progress) -> None:
        """Refresh the copy that encodes the masked patches."""
        ema_update_(self.copy, self.backbone, self.cfg.momentum)

    @property
    def encoder(self) -> Encoder:
        """The encoder; it is used without masking afterwards."""
        return self.backbone

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """The decoding loss alone keeps the latents apart; a large alignment weight may drown it."""
        assert isinstance(cfg, CAEConfig)
        if cfg.align > 20.0:
            return (f"align {cfg.align:g} lets constant latents pay; the paper's --method.align is 2.",)
        return ()

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, what the encoder saw, and what pixels or tokens are decoded, visible patches kept."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        masked_BM = by_row(batch.places["global"], batch.masks["global"])[0]
        outputs = self.head(self.predict(images, mask_BN, masked_BM)[1])
        patches_BNP = patchify(images, self.backbone.patch_size)
        pictures = {"image": images, "visible": self._picture(patches_BNP.masked_fill(mask_BN[..., None], 0.0))}
        if self.cfg.target == "pixels":
            found_BNP = patches_BNP.float().scatter(1, _wide_index(masked_BM, outputs.shape[-1]), outputs.float())
            if self.cfg.normalise_targets:
                found_BNP = denormalise_patches(found_BNP, patches_BNP)
            pictures["reconstruction"] = self._picture(torch.where(mask_BN[..., None], found_BNP, patches_BNP))
            return pictures
        tokens_BN = self._tokens(images)
        assert self.tokenizer is not None
        whole = self.tokenizer.decode(tokens_BN, self.grid)
        if whole is not None:
            guess = self.tokenizer.decode(tokens_BN.scatter(1, masked_BM, outputs.argmax(-1)), self.grid)
            assert guess is not None
            pictures |= {"tokens": _like(whole, images), "reconstruction": _like(guess, images)}
        return pictures

    def _picture(self, patches_BNP: Tensor) -> Tensor:
        return unpatchify(patches_BNP, self.backbone.patch_size, self.grid)


def _head(width: int, outputs: int) -> nn.Linear:
    head = nn.Linear(width, outputs)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wide_index(index_BM: Tensor, width: int) -> Tensor:
    return index_BM[..., None].expand(-1, -1, width)


def _like(pictures: Tensor, images: Tensor) -> Tensor:
    """Return the tokenizer's pictures at the images' size."""
    if pictures.shape == images.shape:
        return pictures
    return nn.functional.interpolate(pictures.float(), size=images.shape[-2:], mode="bicubic", antialias=True)
