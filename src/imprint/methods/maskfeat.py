"""MaskFeat: masked feature prediction for self-supervised visual pre-training.

Wei, Fan, Xie, Wu, Yuille, Feichtenhofer 2021, arXiv 2112.09133. Blocks of patches are replaced by a learned token, and
a linear layer predicts a feature of what was there: a histogram of oriented gradients, pixels, visual words, or what
another, frozen encoder says. Histograms do best of those that need no training (Table 2).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.backbones.load import is_stored, load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.mask_kinds import BlockMask, Mask
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.masked_regression import masked_smooth_l1
from imprint.losses.token_prediction import token_cross_entropy
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.tokenizers import RandomProjectionTokenizer, Tokenizer
from imprint.ops.hog import hog, hog_from_patches, hog_patches, hog_picture
from imprint.ops.patchify import denormalise_patches, normalise_patches, patchify, unpatchify

MISSING = (
    "maskfeat: the target 'features' needs an encoder to imitate; set method.teacher (timm:NAME, a run "
    "folder or an exported file) or start from a finished run."
)


@dataclass(frozen=True, kw_only=True)
class MaskFeatConfig(MethodConfig):
    """MaskFeat's choices.

    Attributes:
        target: what is predicted (Sec. 3.2, Table 2): `hog`, `pixels`, `tokens` (of a discrete VAE when the run starts
            from one of method dvae, otherwise random projections) or `features` of a frozen encoder.
        bins: orientations of a histogram (Sec. 3.2, Table 7).
        cell: side of its cells in pixels, divides the patch (Sec. 3.2).
        normalise_pixels: normalise pixel targets within each patch (public code).
        vocabulary: number of random codes of the `tokens` target without a discrete VAE.
        token_width: width of their projection.
        teacher: of the `features` target: timm:NAME, a run folder or an exported file; may be left empty when the run
            starts from another one, whose encoder is taken then.
        normalise_features: compare with features of length 1 (Sec. 3.2, deep features).
        mask_ratio: share of patches that are masked (Sec. 4.1: 40 %).
        min_block: smallest area of a block of masked patches (public code), at most a quarter of what is masked.
        crop_scale: area share of the crop, the only augmentation beside the flip (Sec. 4.1: no colour).
    """

    target: Literal["hog", "pixels", "tokens", "features"] = "hog"
    bins: int = 9
    cell: int = 8
    normalise_pixels: bool = True
    vocabulary: int = 8192
    token_width: int = 16
    teacher: str = ""
    normalise_features: bool = True
    mask_ratio: float = 0.4
    min_block: int = 16
    crop_scale: tuple[float, float] = (0.5, 1.0)


class MaskFeat(Method):
    """Masked patches, an encoder over all of them, a linear head on the masked ones (Sec. 3.1)."""

    Config: ClassVar[type[MethodConfig]] = MaskFeatConfig

    def __init__(self, cfg: MaskFeatConfig, encoder: Encoder) -> None:
        super().__init__()
        require_tokens(encoder, "maskfeat", ("simclr", "byol"), mask=True)
        self.cfg = cfg
        self.backbone = encoder
        encoder.enable_mask_token()
        self.tokenizer: Tokenizer | None = None
        self.teacher: Encoder | None = None
        patch, channels = encoder.patch_size, encoder.channels
        if cfg.target == "hog" and (patch % cfg.cell or cfg.bins < 1):
            raise ConfigError(
                f"maskfeat: histograms with cells of {cfg.cell} pixels and {cfg.bins} bins do not fit patches of "
                f"{patch} pixels; set method.cell to a divisor of {patch}."
            )
        if cfg.target == "hog":
            width = channels * cfg.bins * (patch // cfg.cell) ** 2
        elif cfg.target == "pixels":
            width = channels * patch**2
        elif cfg.target == "tokens":
            self.tokenizer = RandomProjectionTokenizer(patch, channels, cfg.vocabulary, cfg.token_width)
            width = cfg.vocabulary
        else:
            self.teacher = _frozen(_load_teacher(cfg.teacher)) if cfg.teacher else None
            width = encoder.embed_dim if self.teacher is None else self.teacher.embed_dim
        self.head = _head(encoder.embed_dim, width)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip."""
        assert isinstance(cfg, MaskFeatConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """BEiT's blocks."""
        assert isinstance(cfg, MaskFeatConfig)
        side = image_size // patch_size
        patches = round(side * side * cfg.mask_ratio)
        smallest = min(cfg.min_block, max(1, patches // 4))  # for coarse grids
        return (BlockMask(name="global", grid=(side, side), patches=patches, min_block=smallest),)

    def inherit(self, previous: Method) -> None:
        """Take a discrete VAE's tokenizer (`tokens`), an encoder to imitate (`features`), or go on from a MaskFeat."""
        if isinstance(previous, MaskFeat):
            super().inherit(previous)
        elif self.cfg.target == "tokens" and isinstance(tokenizer := getattr(previous, "tokenizer", None), Tokenizer):
            self.tokenizer = copy.deepcopy(tokenizer).requires_grad_(False).eval()
            self.head = _head(self.backbone.embed_dim, tokenizer.vocabulary)
        elif self.cfg.target == "features" and self.teacher is None:
            self.teacher = _frozen(copy.deepcopy(previous.encoder))
            self.head = _head(self.backbone.embed_dim, self.teacher.embed_dim)
        else:
            raise ConfigError(
                f"maskfeat with target '{self.cfg.target}' cannot start from a {type(previous).__name__}: 'tokens' "
                "starts from a discrete VAE (dvae), 'features' without a teacher of its own from any run."
            )

    def train(self, mode: bool = True) -> MaskFeat:
        """Set the mode; what gives the targets stays in evaluation mode."""
        super().train(mode)
        for part in (self.teacher, self.tokenizer):
            if part is not None:
                part.eval()
        return self

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Predict the features of the masked patches: squared error, or cross-entropy for tokens (Sec. 3.2)."""
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        places_M = batch.places["global"]
        hidden_MD = self.backbone(images, mask_BN=mask_BN).patches_BND.flatten(0, 1).index_select(0, places_M)
        rows = mask_BN.sum()
        mean_rows = all_reduce_mean(rows.float())  # blocks leave each image a few patches more or less
        if self.tokenizer is not None:
            codes_M = self._codes(images).flatten().index_select(0, places_M)
            loss, accuracy = token_cross_entropy(hidden_MD, self.head.weight, codes_M, self.head.bias)
            loss = loss * (rows / mean_rows.clamp_min(1))
            return StepOutput(loss, {"maskfeat/token_accuracy": accuracy})
        target_MP = self.targets(images).flatten(0, 1).index_select(0, places_M)
        loss = masked_smooth_l1(self.head(hidden_MD), target_MP, rows=mean_rows)
        # 1 would be as good as knowing nothing but the mean of the targets.
        with torch.no_grad():
            variance = target_MP.float().var(dim=0).mean().clamp_min(1e-12)
        return StepOutput(loss, {"maskfeat/unexplained": loss.detach() / variance})

    def lacks(self) -> str | None:
        """What an earlier run must have left."""
        return MISSING if self.cfg.target == "features" and self.teacher is None else None

    @torch.no_grad()
    def targets(self, images_BCHW: Tensor) -> Tensor:
        """Return what every patch's prediction is compared with, (B, N, P).

        Raises:
            ConfigError: for `features` without a teacher.
        """
        cfg, patch = self.cfg, self.backbone.patch_size
        if cfg.target == "hog":
            return hog_patches(hog(images_BCHW, bins=cfg.bins, cell=cfg.cell), patch // cfg.cell)
        if cfg.target == "pixels":
            patches = patchify(images_BCHW, patch)
            return normalise_patches(patches) if cfg.normalise_pixels else patches
        if self.teacher is None:
            raise ConfigError(MISSING)
        return self._imitated(self.teacher, images_BCHW)

    def _imitated(self, teacher: Encoder, images_BCHW: Tensor) -> Tensor:
        """Show the teacher the images at the size at which its grid is the student's."""
        grid = self._grid(images_BCHW)
        size = (grid[0] * teacher.patch_size, grid[1] * teacher.patch_size)
        if tuple(images_BCHW.shape[-2:]) != size:
            images_BCHW = F.interpolate(images_BCHW.float(), size=size, mode="bicubic", antialias=True)
        tokens_BND = teacher(images_BCHW).patches_BND.float()
        return F.normalize(tokens_BND, dim=-1) if self.cfg.normalise_features else tokens_BND

    @torch.no_grad()
    def _codes(self, images_BCHW: Tensor) -> Tensor:
        assert self.tokenizer is not None
        return self.tokenizer.encode_grid(images_BCHW, self._grid(images_BCHW))

    def _grid(self, images_BCHW: Tensor) -> tuple[int, int]:
        patch = self.backbone.patch_size
        return images_BCHW.shape[-2] // patch, images_BCHW.shape[-1] // patch

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases and norms; the public code decays the tokens (ZERO_DECAY_POS_CLS off)."""
        return split_decay(self.named_parameters(), decay_tokens=True)

    @property
    def encoder(self) -> Encoder:
        """The encoder; its mask token is not needed afterwards."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, what was visible, and target and prediction as pictures where they can be drawn.

        Histograms are drawn as lines along the edges, the predictions at the masked patches within the true ones.
        """
        images, mask_BN = batch.views["global"][0], batch.masks["global"][0]
        grid, patch, cfg = self._grid(images), self.backbone.patch_size, self.cfg
        hidden = mask_BN[..., None]
        patches_BNP = patchify(images, patch)
        pictures = {"image": images, "visible": unpatchify(patches_BNP.masked_fill(hidden, 0.0), patch, grid)}
        out_BNP = self.head(self.backbone(images, mask_BN=mask_BN).patches_BND).float()
        if cfg.target == "hog":
            true_BNP = self.targets(images)
            shape = (images.shape[1], cfg.bins, patch // cfg.cell)
            for name, rows in {
                "hog: true": true_BNP,
                "hog: predicted": torch.where(hidden, out_BNP.to(true_BNP.dtype), true_BNP),
                "hog: visible": true_BNP.masked_fill(hidden, 0.0),
            }.items():
                drawn = hog_picture(hog_from_patches(rows, grid, *shape))
                pictures[name] = 4.0 * drawn.expand(-1, images.shape[1], -1, -1) - 2.0  # about black to white
        elif cfg.target == "pixels":
            if cfg.normalise_pixels:
                out_BNP = denormalise_patches(out_BNP, patches_BNP)
            joined = torch.where(hidden, out_BNP.to(patches_BNP.dtype), patches_BNP)
            pictures["reconstruction"] = unpatchify(joined, patch, grid)
        elif self.tokenizer is not None:
            codes_BN = torch.where(mask_BN, out_BNP.argmax(-1), self._codes(images))
            decoded = self.tokenizer.decode(codes_BN, grid)
            if decoded is not None:
                pictures["reconstruction"] = decoded
        return pictures


def _head(fan_in: int, fan_out: int) -> nn.Linear:
    """Return the linear layer of the public code: truncated normal of 0.02, no bias at first."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _load_teacher(name: str) -> Encoder:
    """Load by the names of `load_encoder`; a bare timm name means its published weights."""
    plain = ":" not in name and not is_stored(name) and "/" not in name
    return load_encoder(f"timm:{name}" if plain else name)


def _frozen(encoder: Encoder) -> Encoder:
    return encoder.requires_grad_(False).eval()
