"""Jigsaw: unsupervised learning of visual representations by solving jigsaw puzzles.

Noroozi, Favaro 2016, arXiv 1603.09246. Nine tiles of an image are shown in one of P known orders and the network says
in which; one encoder sees the tiles one by one, and only its features meet.

What would give the order away without looking at things is taken away: gaps and jitter against edges that
continue, normalisation of each tile against shared brightness and contrast, grey images against colour fringes, and
permutations that lie far apart, so that no single tile decides.

Shapes: B images, K puzzles of each, T = 9 tiles, s their side, P permutations, W width of a tile in the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import Crop, Look, View
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.tile_fusion import TileFusion
from imprint.ops.keyed import keyed_uniforms
from imprint.ops.marks import framed
from imprint.ops.permutations import hamming_distances, permutation_set
from imprint.ops.tiles import cut_tiles, lay_out, normalise_tiles, reorder, whole_steps


@dataclass(frozen=True, kw_only=True)
class JigsawConfig(MethodConfig):
    """Jigsaw's choices.

    Attributes:
        permutations: size P of the permutation set (the paper: 1,000 of 9! = 362,880).
        permutation_seed: of the set.
        spread: the greedy choice maximises the `mean` Hamming distance to the permutations chosen before (Algorithm 1)
            or the `min` distance (Table 4: a large minimum makes the task less ambiguous, few permutations too easy).
        grid: cells per side (3).
        tile_share: side of a tile as a share of its cell's (64 of 85 px); the rest is gap and jitter.
        tile_size: side in pixels to which tiles are resized for the encoder; None leaves them as they are cut.
        puzzles: orders of the same tiles in a step; more than one costs the head only (arXiv 1901.09005, Sec. 4.1,
            shows each image in several).
        normalise_tiles: mean 0 and deviation 1 for each tile by itself.
        grey: share of images without colour (public re-runs: 0.66; the paper mixes 30 % grey in).
        channel_shift: colour channels of a tile are taken from up to so many pixels away, each its own way (the paper:
            2; the public re-runs rely on grey images: 0).
        crop_scale: area share of the crop, which keeps the image's shape (public re-run: 255 of 292 px).
        tile_width: width of the layer on each tile (the authors' network: fc6, 1,024).
        fusion_width: width of the layer on all tiles together (theirs: fc7, 4,096); 0 leaves it out (public re-run).
        head_norm: BatchNorm in the head (public re-runs on ResNets).
        dropout: in the head (the authors' network: 0.5).
    """

    permutations: int = 1000
    permutation_seed: int = 0
    spread: Literal["mean", "min"] = "mean"
    grid: int = 3
    tile_share: float = 64 / 85
    tile_size: int | None = None
    puzzles: int = 1
    normalise_tiles: bool = True
    grey: float = 0.66
    channel_shift: int = 0
    crop_scale: tuple[float, float] = (0.76, 0.76)
    tile_width: int = 1024
    fusion_width: int = 4096
    head_norm: bool = False
    dropout: float = 0.5


class Jigsaw(Method):
    """Encoder on tiles, their features side by side in the order shown, cross-entropy over P orders."""

    Config: ClassVar[type[MethodConfig]] = JigsawConfig

    permutations_PT: Tensor
    distance_min: Tensor
    distance_mean: Tensor

    def __init__(self, cfg: JigsawConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = encoder
        self.unit = encoder.patch_size if encoder.has_tokens else 1
        self.side_of(encoder.image_size)
        tiles = cfg.grid**2
        permutations_PT = permutation_set(tiles, cfg.permutations, seed=cfg.permutation_seed, spread=cfg.spread)
        self.register_buffer("permutations_PT", permutations_PT)
        least, mean = hamming_distances(permutations_PT)
        self.register_buffer("distance_min", torch.tensor(float(least)))
        self.register_buffer("distance_mean", torch.tensor(mean))
        self.head = TileFusion(
            encoder.embed_dim,
            tiles,
            cfg.permutations,
            tile_width=cfg.tile_width,
            fusion_width=cfg.fusion_width,
            norm=cfg.head_norm,
            dropout=cfg.dropout,
        )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One crop with a flip, often without colour; tiles are cut on the device."""
        assert isinstance(cfg, JigsawConfig)
        crop = Crop(size=image_size, scale=cfg.crop_scale, ratio=None)
        return (View(name="global", crop=crop, look=Look(flip=0.5, grey=cfg.grey)),)

    def side_of(self, image_size: int) -> int:
        """Return the side of a tile in pixels for images of a size: a share of a cell, whole patches for a ViT.

        Raises:
            ConfigError: when not even one patch fits, or resized tiles are no whole patches.
        """
        cell = image_size // self.cfg.grid
        side = min(cell, max(1, round(cell * self.cfg.tile_share)))
        if self.cfg.tile_size is not None:
            if self.cfg.tile_size < 1 or self.cfg.tile_size % self.unit:
                raise ConfigError(
                    f"jigsaw: tiles of {self.cfg.tile_size} px are no whole patches of {self.unit} px; set "
                    f"--method.tile-size to a multiple of {self.unit}."
                )
            return side
        if side < self.unit or cell < 1:
            raise ConfigError(
                f"jigsaw: tiles of {side} px (images of {image_size} px, {self.cfg.grid} x {self.cfg.grid}) are "
                f"smaller than a patch of {self.unit} px. Set --method.tile-size {self.unit} to enlarge them, smaller "
                "patches (--encoder.patch-size) or larger images (--image-size)."
            )
        return side // self.unit * self.unit

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Cut tiles, encode each by itself, shuffle the features, name the order."""
        tiles_BTCss, names_BK = self.puzzles(batch, t)
        logits_BKP = self.predict(tiles_BTCss, names_BK)
        loss = F.cross_entropy(logits_BKP.flatten(0, 1).float(), names_BK.flatten())
        metrics = {
            "jigsaw/accuracy": (logits_BKP.detach().argmax(-1) == names_BK).float().mean(),
            "jigsaw/distance_min": self.distance_min.clone(),
            "jigsaw/distance_mean": self.distance_mean.clone(),
        }
        return StepOutput(loss, metrics)

    def puzzles(self, batch: Batch, t: Progress) -> tuple[Tensor, Tensor]:
        """Return the tiles in their right order (B, T, C, s, s) and the names of the orders to show (B, K).

        Jitter and orders are functions of the sample and the step, whatever process has the sample.
        """
        cfg, images = self.cfg, batch.views["global"][0]
        tiles, channels = cfg.grid**2, images.shape[1]
        side = self.side_of(images.shape[-1])
        slack = images.shape[-1] // cfg.grid - side
        shifts = 2 * tiles * channels if cfg.channel_shift else 0
        drawn = keyed_uniforms(seed_of("jigsaw", t.step), batch.index_B, cfg.puzzles + 2 * tiles + shifts)
        names_BK = whole_steps(drawn[:, : cfg.puzzles], cfg.permutations - 1)
        jitter_BT2 = whole_steps(drawn[:, cfg.puzzles : cfg.puzzles + 2 * tiles], slack).unflatten(1, (tiles, 2))
        shift_BTC2 = None
        if cfg.channel_shift:
            shift_BTC2 = whole_steps(drawn[:, -shifts:], 2 * cfg.channel_shift) - cfg.channel_shift
            shift_BTC2 = shift_BTC2.unflatten(1, (tiles, channels, 2))
        return cut_tiles(images, cfg.grid, side, jitter_BT2, shift_BTC2), names_BK

    def predict(self, tiles_BTCss: Tensor, names_BK: Tensor) -> Tensor:
        """Return logits (B, K, P) for tiles shown in the orders of these names.

        The encoder sees a tile alone, so its features are the same in every order and are computed once.
        """
        count, tiles = tiles_BTCss.shape[:2]
        seen = tiles_BTCss.flatten(0, 1)
        if self.cfg.tile_size is not None and self.cfg.tile_size != seen.shape[-1]:
            side = (self.cfg.tile_size, self.cfg.tile_size)
            seen = F.interpolate(seen, side, mode="bilinear", antialias=side[0] < seen.shape[-1])
        if self.cfg.normalise_tiles:
            seen = normalise_tiles(seen)
        features_BTW = self.head.embed(self.backbone(seen).pooled_BD).unflatten(0, (count, tiles))
        order_BKT = self.permutations_PT[names_BK]
        shown_BKTW = features_BTW[torch.arange(count, device=seen.device)[:, None, None], order_BKT]
        logits: Tensor = self.head(shown_BKTW.flatten(0, 1))
        return logits.unflatten(0, names_BK.shape)

    def chance(self) -> float:
        """Share of right answers of one who guesses."""
        return 1 / len(self.permutations_PT)

    @torch.no_grad()
    def solved(self, batch: Batch, t: Progress) -> Tensor:
        """Return the share of its puzzles whose order is named rightly, for each image (B,)."""
        tiles_BTCss, names_BK = self.puzzles(batch, t)
        return (self.predict(tiles_BTCss, names_BK).argmax(-1) == names_BK).float().mean(1)

    @property
    def encoder(self) -> Encoder:
        """The encoder that all tiles share; afterwards it sees whole images."""
        return self.backbone

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return images, their tiles as shown, and put back as the predicted order says (green frame: rightly)."""
        images = batch.views["global"][0]
        tiles_BTCss, names_BK = self.puzzles(batch, t)
        guess_B = self.predict(tiles_BTCss, names_BK[:, :1])[:, 0].argmax(-1)
        shown = reorder(tiles_BTCss, self.permutations_PT[names_BK[:, 0]])
        solved = reorder(shown, self.permutations_PT[guess_B].argsort(1))
        grid, cell = self.cfg.grid, images.shape[-1] // self.cfg.grid
        return {
            "image": images,
            "puzzle": lay_out(shown, grid, cell),
            "solution": framed(lay_out(solved, grid, cell), guess_B == names_BK[:, 0]),
        }
