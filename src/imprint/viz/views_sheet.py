"""What the network really saw: crops of the first batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from imprint.viz.raster import Picture, picture, resized, save_png, sheet

ROWS = 8
FEW = 5
GAP = 4


def views_sheet(views: Mapping[str, Tensor], *, rows: int = ROWS, height: int = 112) -> Picture:
    """Return one sheet of crops, at their sizes relative to the largest: a row per image, or a column when it has few.

    In a row, small crops stand on top of each other where several fit into the height of the largest.

    Args:
        views: integers or floats in [0, 1] by view name, (V, B, C, H, W).
        rows: at most this many images.
        height: pixels of the largest view on the sheet.
    """
    largest = max(v.shape[-2] for v in views.values())
    count = min(rows, *(v.shape[1] for v in views.values()))
    lying = sum(v.shape[0] for v in views.values()) >= FEW
    out = []
    for b in range(count):
        cells = []
        for crops in views.values():
            side = max(24, round(height * crops.shape[-2] / largest))
            shown = [picture(crop[b].numpy(), channels_first=True) for crop in crops]
            shown = [resized(image, side, side, smooth=side < 2 * image.shape[0]) for image in shown]
            fit = max(1, (height + GAP) // (side + GAP)) if lying else 1
            cells += [sheet([[p] for p in shown[i : i + fit]], gap=GAP) for i in range(0, len(shown), fit)]
        out.append(cells)
    return sheet(out if lying else [list(column) for column in zip(*out, strict=True)], gap=GAP)


def describe_views(views: Mapping[str, Tensor]) -> list[str]:
    """Return one line per view: name, number of crops, size."""
    return [f"{name}: {v.shape[0]} x {v.shape[-1]} px, {v.shape[2]} channels" for name, v in views.items()]


def save_views_sheet(views: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(views_sheet(views), path)
