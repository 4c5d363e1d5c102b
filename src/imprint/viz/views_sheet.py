"""What the network really saw: crops of the first batch, one row per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from imprint.viz.raster import Picture, picture, resized, save_png, sheet

ROWS = 8


def views_sheet(views: Mapping[str, Tensor], *, rows: int = ROWS, height: int = 112) -> Picture:
    """Return one sheet: a row per image, the crops of every view side by side, at their sizes relative to the largest.

    Args:
        views: integers or floats in [0, 1] by view name, (V, B, C, H, W).
        rows: at most this many images.
        height: pixels of the largest view on the sheet.
    """
    largest = max(v.shape[-2] for v in views.values())
    count = min(rows, *(v.shape[1] for v in views.values()))
    columns = [(crop, _side(v.shape[-2], largest, height)) for v in views.values() for crop in v]
    out = []
    for b in range(count):
        cells = []
        for crop, side in columns:
            image = picture(crop[b].numpy(), channels_first=True)
            cells.append(resized(image, side, side, smooth=side < 2 * image.shape[0]))
        out.append(cells)
    return sheet(out)


def describe_views(views: Mapping[str, Tensor]) -> list[str]:
    """Return one line per view: name, number of crops, size."""
    return [f"{name}: {v.shape[0]} x {v.shape[-1]} px, {v.shape[2]} channels" for name, v in views.items()]


def save_views_sheet(views: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(views_sheet(views), path)


def _side(own: int, largest: int, height: int) -> int:
    return max(24, int(np.rint(height * own / largest)))
