"""Where a ViT looks: attention of the class token in one block, one map per head (DINO, arXiv 2104.14294, Fig. 1).

Shapes: B images, H heads, T tokens (prefix first), N = gh * gw patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.viz.colours import heat
from imprint.viz.raster import Picture, resized, save_png, sheet

Maps = npt.NDArray[np.float32]
ENTRIES = 2**26
"""Most attention probabilities of one block computed at a time (256 MB in float32), taking 16 heads."""


def attention_maps(encoder: Encoder, images_BCHW: Tensor, layer: int = -1) -> Maps:
    """Return attention to the patches, float32 (B, H, gh, gw), each map summing to the share it gives to patches.

    The query is the class token; without one, the mean over all patches' queries.

    Raises:
        ConfigError: for an encoder without attention.
    """
    require_attention(encoder)
    grid = grid_of(encoder, images_BCHW)
    parts = []
    with torch.no_grad():
        for rows in at_a_time(encoder, len(images_BCHW), grid):
            parts.append(seen_by(encoder, encoder.attention(images_BCHW[rows], layer), images_BCHW))
    maps = torch.cat(parts)
    return np.asarray(maps.numpy(), dtype=np.float32).reshape(*maps.shape[:2], *grid)


def require_attention(encoder: Encoder) -> None:
    """Refuse an encoder whose attention over the whole image cannot be shown.

    Raises:
        ConfigError: saying why, and what can be looked at instead.
    """
    if not encoder.has_tokens:
        raise ConfigError(
            f"'{encoder.name}' has no attention of one token to all patches (CNNs have none, a Swin's stays within "
            "windows); choose a ViT, or look at features: pca, correspondence, norms."
        )


def grid_of(encoder: Encoder, images_BCHW: Tensor) -> tuple[int, int]:
    """Return (gh, gw) of a ViT for images of this size."""
    require_attention(encoder)
    return images_BCHW.shape[2] // encoder.patch_size, images_BCHW.shape[3] // encoder.patch_size


def at_a_time(encoder: Encoder, count: int, grid: tuple[int, int]) -> Iterator[slice]:
    """Yield stretches of images whose attention fits in memory together."""
    tokens = encoder.prefix_tokens + grid[0] * grid[1]
    step = max(1, ENTRIES // (16 * tokens * tokens))
    yield from (slice(start, start + step) for start in range(0, count, step))


def seen_by(encoder: Encoder, weights_BHTT: Tensor, images_BCHW: Tensor) -> Tensor:
    """Return the row of the class token, or the mean over the patches' rows, towards the patches: (B, H, N) float32."""
    prefix = encoder.prefix_tokens
    with torch.no_grad():
        has_cls = prefix > 0 and encoder.encode(images_BCHW[:1]).cls_BD is not None
    rows = weights_BHTT[:, :, :1] if has_cls else weights_BHTT[:, :, prefix:]
    return rows[..., prefix:].mean(2).float().cpu()


def kept_mass(maps: Maps, keep: float = 0.6) -> npt.NDArray[np.bool_]:
    """Return the patches of highest attention that hold a share of each map: True where the mask is, same shape.

    Patches are taken from the highest on until they hold at least `keep` of the map's sum, and no further (DINO, arXiv
    2104.14294, Fig. 4 and the public visualisation: 60 % of the mass).

    Args:
        maps: (..., gh, gw), non-negative.
        keep: share of the mass, in (0, 1].

    Raises:
        ConfigError: for a share outside that range.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"keep {keep:g} is the share of attention that is shown; give one above 0 and up to 1.")
    flat = maps.reshape(*maps.shape[:-2], -1).astype(np.float64)
    order = np.argsort(-flat, axis=-1, kind="stable")
    ranked = np.take_along_axis(flat, order, -1)
    before = np.cumsum(ranked, -1) - ranked
    # The rounding of the sum must not ask for one more patch.
    inside = before < keep * ranked.sum(-1, keepdims=True) * (1 - 1e-12)
    out = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(out, order, inside, -1)
    return out.reshape(maps.shape)


def overlay(image: Picture, map_hw: npt.NDArray[np.float32], strength: float = 0.75) -> Picture:
    """Lay one map over an image: scaled to its own range, opaque where attention is high, bilinear between patches."""
    import cv2

    height, width = image.shape[:2]
    low, high = float(map_hw.min()), float(map_hw.max())
    scaled = (map_hw - low) / (high - low) if high > low else np.zeros_like(map_hw)
    large = cv2.resize(scaled.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    alpha = strength * (0.35 + 0.65 * large)
    return np.asarray(np.rint(image * (1 - alpha) + heat(large[..., 0]) * alpha), dtype=np.uint8)


def masked(image: Picture, mask_hw: npt.NDArray[np.bool_]) -> Picture:
    """Show an image where the mask is, and a dark grey version of it elsewhere; every patch is one block."""
    large = resized(np.repeat(mask_hw[..., None].astype(np.uint8), 3, 2), *image.shape[:2], smooth=False) > 0
    dark = np.rint(0.3 * image.mean(2, keepdims=True)).repeat(3, 2).astype(np.uint8)
    return np.where(large, image, dark)


def head_cells(image: Picture, maps_Hhw: Maps, *, heads: int = 6, keep: float | None = None) -> list[Picture]:
    """Return one image's cells: the mean over all heads, then the first `heads` heads.

    Args:
        image: the picture.
        maps_Hhw: maps of its heads.
        heads: how many.
        keep: None lays the maps over the image; a share shows the patches that hold this much of the mass.
    """
    chosen = [maps_Hhw.mean(0), *maps_Hhw[:heads]]
    if keep is None:
        return [overlay(image, own) for own in chosen]
    return [masked(image, kept_mass(own, keep)) for own in chosen]


def sheet_of(images: Sequence[Picture], rows: Sequence[Sequence[npt.NDArray[np.float32]]], side: int) -> Picture:
    """Return a sheet: a column per image, the image above its maps."""
    bases = [resized(image, side, side) for image in images]
    return sheet([bases, *([overlay(base, own) for base, own in zip(bases, row, strict=True)] for row in rows)])


def attention_sheet(images: list[Picture], maps: Maps, *, heads: int = 6, side: int = 112) -> Picture:
    """Return a sheet: a column per image, from above the image, the mean over heads, the first `heads` heads."""
    shown = [maps.mean(1), *(maps[:, head] for head in range(min(heads, maps.shape[1])))]
    return sheet_of(images, [list(row) for row in shown], side)


def save_attention(images: list[Picture], maps: Maps, path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(attention_sheet(images, maps), path)
