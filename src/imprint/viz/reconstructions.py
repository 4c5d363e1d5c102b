"""What a masked model makes of what it did not see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from imprint.viz.raster import Picture, picture, resized, save_png, sheet

ORDER = ("image", "visible", "reconstruction")


def ordered(pictures: Mapping[str, Tensor]) -> list[str]:
    """Return the names as rows: image, visible, reconstruction, then all others by name."""
    return [n for n in ORDER if n in pictures] + sorted(n for n in pictures if n not in ORDER)


def reconstructions(pictures: Mapping[str, Tensor], *, columns: int = 8, side: int = 112) -> Picture:
    """Return a sheet with a column per image and a row per name, from (B, C, H, W) floats in [0, 1]."""
    names = ordered(pictures)
    count = min(columns, *(pictures[n].shape[0] for n in names))
    cells = [[picture(pictures[n][b].float().numpy(), channels_first=True) for b in range(count)] for n in names]
    return sheet([[resized(c, side, side, smooth=side < 2 * c.shape[0]) for c in row] for row in cells])


def save_reconstructions(pictures: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(reconstructions(pictures), path)
