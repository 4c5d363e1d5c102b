"""Norms of patch tokens: a few of very high norm mean that the model stores global notes in the background.

After "Vision Transformers Need Registers" (arXiv 2309.16588). Shapes: B images, N = gh * gw patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.viz.charts import Chart, Series
from imprint.viz.colours import heat
from imprint.viz.raster import Picture, resized, save_png, sheet


@dataclass(frozen=True)
class TokenNorms:
    """Norms of patch tokens.

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


def tokens_before_norm(encoder: Encoder, images_BCHW: Tensor) -> Tensor:
    """Return the patch tokens (B, N, D) that enter the final norm, or the output's when there is no such layer.

    A LayerNorm gives every token nearly the same length, so high-norm tokens only show before it. The final norm is
    recognised by what it gives: its output is the encoder's patch tokens.
    """
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].ndim in (3, 4):  # tokens, or a Swin's map (B, gh, gw, D)
            calls[:] = [(inputs[0].flatten(1, -2), output.flatten(1, -2))]

    norms = [m for m in encoder.modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))]
    hooks = [module.register_forward_hook(keep) for module in norms]
    try:
        with torch.no_grad():
            patches = encoder.encode(images_BCHW).patches_BND
    finally:
        for hook in hooks:
            hook.remove()
    if calls:
        before, after = (t[:, t.shape[1] - patches.shape[1] :] for t in calls[0])
        if after.shape == patches.shape and torch.allclose(after.float(), patches.float()):
            return before
    return patches


def token_norms(patches_BND: npt.NDArray[np.float32]) -> TokenNorms:
    """Measure the norms of patch tokens (B, N, D)."""
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
    return Chart("Token norms", (line,), " %", x_label="norm")


def norm_pictures(found: TokenNorms, grid: tuple[int, int]) -> list[Picture]:
    """Return one picture an image, a pixel a patch, from the smallest norm of all (dark) to the largest (bright)."""
    low = float(found.norms_BN.min())
    return [heat((own.reshape(grid) - low) / max(found.largest - low, 1e-12)) for own in found.norms_BN]


def norms_sheet(images: list[Picture], found: TokenNorms, grid: tuple[int, int], side: int = 112) -> Picture:
    """Return a sheet: a column per image, the image above its norms, from the smallest of all to the largest."""
    shades = norm_pictures(found, grid)
    return sheet(
        [[resized(p, side, side) for p in images], [resized(s, side, side, smooth=False) for s in shades]],
    )


def save_norms(images: list[Picture], found: TokenNorms, grid: tuple[int, int], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(norms_sheet(images, found, grid), path)
