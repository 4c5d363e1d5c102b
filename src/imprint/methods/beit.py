"""BEiT: BERT pre-training of image transformers.

Bao, Dong, Piao, Wei 2021, arXiv 2106.08254, and microsoft/unilm, folder beit. Blocks of patches are replaced by a mask
token, and the encoder names the visual words that a tokenizer reads at these places of the same crop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, Features
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import BlockMask, Mask, RandomMask
from imprint.data.view_recipes import mae_views
from imprint.data.views import Look, View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.token_prediction import token_cross_entropy
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.ema import frozen_copy
from imprint.nn.tokenizers import RandomProjectionTokenizer, Tokenizer
from imprint.ops.patchify import denormalise_patches, normalise_patches, patchify, unpatchify

MISSING = (
    "BEiT names the visual words of a discrete VAE and there is none: train one (imprint pretrain dvae), "
    "then name its run by --start, or use a recipe of two stages (beit/small_dvae); "
    "--method.tokenizer random needs no training."
)


@dataclass(frozen=True, kw_only=True)
class BEiTConfig(MethodConfig):
    """BEiT's choices.

    Attributes:
        tokenizer: `dvae`, the tokenizer of the run that this one starts from (Sec. 2.1); `random`, codes of a random
            projection of the patches (SplitMask, arXiv 2112.10740, Sec. 3); `pixels`, no words at all but the pixels
            themselves, normalised within each patch (the ablation of Table 4).
        vocabulary: number of visual words (Sec. 2.1), that of the tokenizer.
        projection: width of the random projection; None for codes in the space of the patches (arXiv 2112.10740).
        mask: `block`, or `random` patches (the ablation of Table 4).
        share: part of the patches that is masked (Sec. 2.2: 40 %; public code: 75 of 196).
        min_block: fewest patches of a block (Algorithm 1).
        min_aspect: smallest aspect ratio of a block (Algorithm 1).
        recover: predict the `masked` patches, or `all` of them (the ablation of Table 4).
        crop_scale: area share of the crop (public code).
        colour: strength of the jitter of brightness, contrast and saturation (App. D; public code).
    """

    tokenizer: Literal["dvae", "random", "pixels"] = "dvae"
    vocabulary: int = 8192
    projection: int | None = None
    mask: Literal["block", "random"] = "block"
    share: float = 75 / 196
    min_block: int = 16
    min_aspect: float = 0.3
    recover: Literal["masked", "all"] = "masked"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 0.4


class BEiT(Method):
    """Encoder with mask tokens, a linear classifier over visual words on the masked patches (Sec. 2.3, Eq. 2).

    The paper's encoder has one relative position bias for all blocks and no absolute positions (`Arch`); any ViT or
    Swin whose patches can be masked serves.
    """

    Config: ClassVar[type[MethodConfig]] = BEiTConfig
    needs_tokens: ClassVar[bool] = True

    def __init__(self, cfg: BEiTConfig, encoder: Encoder) -> None:
        super().__init__()
        if not encoder.can_mask:
            raise ConfigError(
                f"beit replaces patches by a mask token, which '{encoder.name}' cannot do. Choose a ViT (for example "
                "--encoder beit_base_patch16_224) or a Swin, or a method for CNNs: simclr, dino."
            )
        self.cfg = cfg
        masked: Any = encoder
        masked.enable_mask_token()
        self.backbone = encoder
        self.tokenizer: Tokenizer | None = None
        values = encoder.patch_size**2 * encoder.channels
        if cfg.tokenizer == "random":
            self.tokenizer = RandomProjectionTokenizer(
                encoder.patch_size, encoder.channels, cfg.vocabulary, cfg.projection
            )
        self.head = nn.Linear(encoder.embed_dim, values if cfg.tokenizer == "pixels" else cfg.vocabulary)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.02, b=0.02)  # cut at one deviation, as the public code
        nn.init.zeros_(self.head.bias)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip and colour jitter; encoder and tokenizer read the same."""
        assert isinstance(cfg, BEiTConfig)
        (view,) = mae_views(image_size, scale=cfg.crop_scale)
        c = cfg.colour
        look = Look(flip=0.5, brightness=c, contrast=c, saturation=c, jitter=1.0 if c else 0.0)
        return (replace(view, look=look),)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Blocks until the share is reached (Algorithm 1)."""
        assert isinstance(cfg, BEiTConfig)
        side = image_size // patch_size
        if cfg.mask == "random":
            return (RandomMask(name="global", grid=(side, side), ratio=cfg.share),)
        patches = max(1, round(cfg.share * side * side))
        return (
            BlockMask(
                name="global",
                grid=(side, side),
                patches=patches,
                min_block=min(cfg.min_block, patches),
                min_aspect=cfg.min_aspect,
            ),
        )

    def inherit(self, previous: Method) -> None:
        """Take over the tokenizer of a discrete VAE, frozen; or go on from an earlier BEiT."""
        if isinstance(previous, BEiT) and self.cfg.tokenizer != "dvae":
            super().inherit(previous)
            return
        found = getattr(previous, "tokenizer", None)
        if self.cfg.tokenizer != "dvae" or not isinstance(found, Tokenizer):
            raise ConfigError(
                f"BEiT with tokenizer='{self.cfg.tokenizer}' cannot start from a {type(previous).__name__}: it takes "
                "over the tokenizer of a dvae run (--method.tokenizer dvae), or goes on from a BEiT of its own kind."
            )
        if found.vocabulary != self.cfg.vocabulary or found.channels != self.backbone.channels:
            raise ConfigError(
                f"the tokenizer names {found.vocabulary} words in images of {found.channels} channels, and this run "
                f"expects {self.cfg.vocabulary} and {self.backbone.channels}; use --method.vocabulary "
                f"{found.vocabulary} and images of the same kind."
            )
        self.tokenizer = frozen_copy(found).eval()
        if isinstance(previous, BEiT):
            super().inherit(previous)

    def train(self, mode: bool = True) -> BEiT:
        """Switch to training or evaluation; the tokenizer stays as it was learned."""
        super().train(mode)
        if self.tokenizer is not None:
            self.tokenizer.eval()
        return self

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Name the visual words at the masked places (Eq. 2)."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        features = self.backbone(images, mask_BN=mask_BN)
        hidden_TD = features.patches_BND.flatten(0, 1)
        places_T = None if self.cfg.recover == "all" else batch.places["global"]
        if places_T is not None:
            hidden_TD = hidden_TD.index_select(0, places_T)
        metrics: dict[str, Tensor] = {}
        if self.cfg.tokenizer == "pixels":
            target_TP = self._pixels(images).flatten(0, 1)
            target_TP = target_TP if places_T is None else target_TP.index_select(0, places_T)
            loss = F.mse_loss(self.head(hidden_TD).float(), target_TP)
        else:
            words_T = self._words(images, features.grid).flatten()
            words_T = words_T if places_T is None else words_T.index_select(0, places_T)
            loss, accuracy = token_cross_entropy(hidden_TD, self.head.weight, words_T, self.head.bias)
            metrics["beit/accuracy"] = accuracy
        if places_T is not None:  # masks differ in size: every masked patch of all processes counts alike
            count = mask_BN.sum().to(loss.dtype)
            loss = loss * (count / all_reduce_mean(count))
        return StepOutput(loss, metrics)

    def lacks(self) -> str | None:
        """What an earlier run must have left."""
        return MISSING if self.cfg.tokenizer == "dvae" and self.tokenizer is None else None

    @torch.no_grad()
    def _words(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the visual words (B, N) of the crop at the encoder's grid (public code: of the crop at half size)."""
        if self.tokenizer is None:
            raise ConfigError(MISSING)
        return self.tokenizer.encode_grid(images, grid)

    def _pixels(self, images: Tensor) -> Tensor:
        return normalise_patches(patchify(images, self.backbone.patch_size))

    @property
    def encoder(self) -> Encoder:
        """The encoder; it is used without masking afterwards."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, what the encoder saw, and what the tokenizer makes of true and of predicted words."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        features: Features = self.backbone(images, mask_BN=mask_BN)
        patches_BNP = patchify(images, self.backbone.patch_size)
        hidden = mask_BN[..., None]

        def picture(x_BNP: Tensor) -> Tensor:
            return unpatchify(x_BNP, self.backbone.patch_size, features.grid)

        pictures = {"image": images, "visible": picture(patches_BNP.masked_fill(hidden, 0.0))}
        predicted = self.head(features.patches_BND)
        if self.tokenizer is None:
            pixels_BNP = denormalise_patches(predicted, patches_BNP)
            return pictures | {"reconstruction": picture(torch.where(hidden, pixels_BNP, patches_BNP.float()))}
        words_BN = self._words(images, features.grid)
        true = self.tokenizer.decode(words_BN, features.grid)
        guessed = self.tokenizer.decode(torch.where(mask_BN, predicted.argmax(-1), words_BN), features.grid)
        if true is None or guessed is None:
            return pictures
        return pictures | {"reconstruction": guessed, "true words": true}
