"""SplitMask: are large-scale datasets necessary for self-supervised pre-training?

El-Nouby, Izacard, Touvron, Laptev, Jegou, Grave 2021, arXiv 2112.10740. The patches of an image are split into two
random halves. One encoder sees each half by itself; a shallow decoder predicts the visual words of the other half, and
the means of its two outputs match across halves against those of other images. No code is public; what the paper does
not say is said below.

Shape suffixes: B images, N patches, M = N / 2 patches of a half, D width, S = 2 B halves (all A, then all B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.errors import ConfigError, unknown
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, RandomMask
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.dist.collectives import gather_with_grad
from imprint.losses.info_nce import info_nce
from imprint.losses.token_prediction import token_cross_entropy
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.ema import frozen_copy
from imprint.nn.predictor import Predictor
from imprint.nn.tokenizers import RandomProjectionTokenizer, Tokenizer
from imprint.ops.masking import keep_from_mask
from imprint.ops.spread import agreement

MISSING = (
    "splitmask has no tokenizer: --method.tokenizer dvae starts from a trained one. Train it (imprint "
    "pretrain dvae) and give its run with --start RUN, or use --method.tokenizer random."
)


@dataclass(frozen=True, kw_only=True)
class SplitMaskConfig(MethodConfig):
    """SplitMask's choices.

    Attributes:
        tokenizer: `random` takes the nearest of random vectors in the space of patches, as good as a discrete VAE and
            trained on nothing (Sec. 3); `dvae` the words of a trained one, which the run starts from.
        vocabulary: number of visual words of the random tokenizer (Sec. 3; BEiT's 8,192).
        contrastive_weight: weight of the InfoNCE term (Sec. 4); 0 leaves the inpainting alone, an ablation.
        temperature: tau of the InfoNCE term; the paper names none, this is the usual one.
        decoder_depth: blocks of the decoder (Sec. 4: a shallow one, 2 layers).
        decoder_width: its width; None takes the encoder's.
        decoder_heads: its attention heads; None takes one per 64 of its width.
        crop_scale: area share of the crop; crop and flip are the only augmentation.
    """

    tokenizer: Literal["random", "dvae"] = "random"
    vocabulary: int = 8192
    contrastive_weight: float = 1.0
    temperature: float = 0.2
    decoder_depth: int = 2
    decoder_width: int | None = None
    decoder_heads: int | None = None
    crop_scale: tuple[float, float] = (0.2, 1.0)


class SplitMask(Method):
    """Split, inpaint, match (Sec. 4)."""

    Config: ClassVar[type[MethodConfig]] = SplitMaskConfig
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: SplitMaskConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "splitmask", ("simclr", "byol"), drop=True)
        side = encoder.image_size // encoder.patch_size
        self.grid = (side, side)
        if side % 2:
            raise ConfigError(
                f"splitmask cuts the patches into equal halves and {side} x {side} patches are an odd number; "
                f"use images of {(side + 1) * encoder.patch_size} pixels or another patch size."
            )
        self.cfg = cfg
        self.backbone = encoder
        self.tokenizer: Tokenizer | None = None
        if cfg.tokenizer == "random":
            self.tokenizer = RandomProjectionTokenizer(encoder.patch_size, encoder.channels, cfg.vocabulary, width=None)
        elif cfg.tokenizer != "dvae":
            raise unknown("tokenizer", str(cfg.tokenizer), ("random", "dvae"))
        self.decoder = self._decoder(cfg.vocabulary)

    def _decoder(self, vocabulary: int) -> Predictor:
        width = self.cfg.decoder_width or self.backbone.embed_dim
        heads = self.cfg.decoder_heads or max(1, width // 64)
        return Predictor(self.backbone.embed_dim, width, self.cfg.decoder_depth, heads, self.grid, vocabulary)

    def inherit(self, previous: Method) -> None:
        """Take over a trained tokenizer (`tokenizer: dvae`), or go on from a run of this method."""
        if type(previous) is type(self):
            trained = getattr(previous, "tokenizer", None)
            if self.cfg.tokenizer == "dvae" and isinstance(trained, Tokenizer):
                self._adopt(trained)
            super().inherit(previous)
            return
        trained = getattr(previous, "tokenizer", None)
        if self.cfg.tokenizer != "dvae" or not isinstance(trained, Tokenizer):
            raise ConfigError(
                f"splitmask starts from a run with a tokenizer (imprint pretrain dvae) and --method.tokenizer dvae, "
                f"not from a {type(previous).__name__} with --method.tokenizer {self.cfg.tokenizer}."
            )
        self._adopt(trained)

    def _adopt(self, trained: Tokenizer) -> None:
        if trained.channels != self.backbone.channels:
            raise ConfigError(
                f"the tokenizer reads images of {trained.channels} channels and the encoder of "
                f"{self.backbone.channels}; train one on the same images."
            )
        self.tokenizer = frozen_copy(trained).eval()
        if trained.vocabulary != self.decoder.out.out_features:
            self.decoder = self._decoder(trained.vocabulary)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip."""
        assert isinstance(cfg, SplitMaskConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Half of the patches: B where True, A elsewhere."""
        side = image_size // patch_size
        return (RandomMask(name="global", grid=(side, side), ratio=0.5),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Encode both halves, predict the words of each from the other, match the two descriptions of an image."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        tokens_SLD, asked_SM = self.decoded(images, mask_BN)
        asked = tokens_SLD[:, -asked_SM.shape[1] :]
        words_SN = self.words(images).repeat(2, 1)
        weight, bias = self.decoder.out.weight, self.decoder.out.bias
        inpainting, accuracy = token_cross_entropy(
            asked.flatten(0, 1), weight, words_SN.gather(1, asked_SM).flatten(), bias
        )
        # Class token aside, the decoder's outputs at all N patches, seen and asked for, describe the image.
        xa_BD, xb_BD = tokens_SLD[:, -mask_BN.shape[1] :].mean(dim=1).chunk(2)
        metrics = {"splitmask/inpainting": inpainting.detach(), "splitmask/accuracy": accuracy.detach()}
        loss = inpainting
        if self.cfg.contrastive_weight:
            matching = self.matching(xa_BD, xb_BD)
            metrics |= {"splitmask/matching": matching.detach(), **agreement(xa_BD.detach(), xb_BD.detach())}
            loss = loss + self.cfg.contrastive_weight * matching
        return StepOutput(loss, metrics)

    def decoded(self, images: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's outputs (S, [class token,] seen M, asked for M; D) and the places asked for (S, M)."""
        half = mask_BN.shape[1] // 2
        a_BM, b_BM = keep_from_mask(mask_BN, half), keep_from_mask(~mask_BN, half)
        seen_SM, asked_SM = torch.cat([a_BM, b_BM]), torch.cat([b_BM, a_BM])
        features = self.backbone(images.repeat(2, 1, 1, 1), keep_BM=seen_SM)
        first = None if features.cls_BD is None else features.cls_BD[:, None]
        return self.decoder.tokens(features.patches_BND, seen_SM, asked_SM[None], first), asked_SM

    def lacks(self) -> str | None:
        """What an earlier run must have left."""
        return MISSING if self.tokenizer is None else None

    @torch.no_grad()
    def words(self, images: Tensor) -> Tensor:
        """Return the visual words of all patches (B, N), int64."""
        if self.tokenizer is None:
            raise ConfigError(MISSING)
        return self.tokenizer.encode_grid(images, self.grid)

    def matching(self, xa_BD: Tensor, xb_BD: Tensor) -> Tensor:
        """Return InfoNCE of A's description against all of B's, and the other way round, averaged (Sec. 4)."""
        xa_all, offset = gather_with_grad(xa_BD)
        xb_all, _ = gather_with_grad(xb_BD)
        tau = self.cfg.temperature
        forth = info_nce(xa_BD, xb_BD, tau, k_all=xb_all, offset=offset)
        back = info_nce(xb_BD, xa_BD, tau, k_all=xa_all, offset=offset)
        return 0.5 * (forth + back)

    @property
    def encoder(self) -> Encoder:
        """The encoder; it sees all patches afterwards."""
        return self.backbone
