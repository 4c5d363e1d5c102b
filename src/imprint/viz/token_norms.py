"""Norms of patch tokens: a few of very high norm mean that the model stores global notes in the background.

After "Vision Transformers Need Registers" (arXiv 2309.16588). Shapes: B images, N = gh * gw patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.viz.charts import Chart, Series
from imprint.viz.colours import heat
from imprint.viz.raster import Picture, resized, save_png, sheet


@dataclass(frozen=True)
class TokenNorms:
    """Norms of the output patch tokens.

    Attributes:
        norms_BN: Euclidean norms.
        median: over all patches.
        largest: over all patches.
        outlier_share: share of patches, in [0, 1], above the median + 6 robust standard deviations (1.4826 MAD), and
            at least half as large again as the median.
    """

    norms_BN: npt.NDArray[np.float32]
    median: float
    largest: float
    outlier_share: float


def token_norms(patches_BND: npt.NDArray[np.float32]) -> TokenNorms:
    """Measure the norms."""
    norms = np.linalg.norm(patches_BND.astype(np.float32), axis=2)
    median = float(np.median(norms))
    spread = 1.4826 * float(np.median(np.abs(norms - median)))
    limit = max(median + 6 * spread, 1.5 * median)
    return TokenNorms(norms, median, float(norms.max()), float((norms > limit).mean()))


def histogram(found: TokenNorms, bins: int = 40) -> Chart:
    """Return the share of patches per bin of norm, as a chart."""
    counts, edges = np.histogram(found.norms_BN, bins=bins)
    middle = (edges[:-1] + edges[1:]) / 2
    share = 100.0 * counts / max(1, counts.sum())
    line = Series("patches", tuple(map(float, middle)), tuple(map(float, share)))
    return Chart("Token norms", (line,), " %", x_label="norm of the output token")


def norms_sheet(images: list[Picture], found: TokenNorms, grid: tuple[int, int], side: int = 112) -> Picture:
    """Return a sheet: per row the image and its norms, dark = 0, bright = the largest of all."""
    rows = []
    for image, own in zip(images, found.norms_BN, strict=True):
        shade = heat(own.reshape(grid) / max(found.largest, 1e-12))
        rows.append([resized(image, side, side), resized(shade, side, side, smooth=False)])
    return sheet(rows)


def save_norms(images: list[Picture], found: TokenNorms, grid: tuple[int, int], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(norms_sheet(images, found, grid), path)
