"""Histograms of oriented gradients, batched on the device: the targets of MaskFeat, and pictures of them.

Shape suffixes: B images, C channels, H x W pixels, K bins, gy x gx cells, u cells along a patch's side, N patches,
P = C K u u values per patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError


@torch.no_grad()
def hog(images_BCHW: Tensor, *, bins: int = 9, cell: int = 8) -> Tensor:
    r"""Return one histogram of gradient orientations per cell and channel, of length 1 (MaskFeat, arXiv 2112.09133).

    Per channel (dx, dy) = Sobel filters with reflected borders; a pixel gives its magnitude sqrt(dx^2 + dy^2) to bin
    floor(K atan2(dx, dy) / pi) mod K, orientations without sign and no sharing between bins; cells are summed and
    their histograms divided by their Euclidean norm (at least 1e-12), without blocks (Sec. 3.2; public code).

    Args:
        images_BCHW: floats; the public code takes the normalised network input.
        bins: K.
        cell: side of a cell in pixels, divides H and W.

    Returns:
        (B, C, K, gy, gx), float32 (float64 for float64 images), in [0, 1]; a cell without any gradient is all 0.

    Raises:
        ConfigError: for sizes that do not divide.
    """
    _, _, height, width = images_BCHW.shape
    if bins < 1 or cell < 1 or height % cell or width % cell or min(height, width) < 2:
        raise ConfigError(
            f"hog: cells of {cell} pixels and {bins} bins do not fit images of {height} x {width}; use a cell that "
            "divides both sides."
        )
    with torch.autocast(images_BCHW.device.type, enabled=False):
        dtype = torch.float64 if images_BCHW.dtype == torch.float64 else torch.float32
        x = F.pad(images_BCHW.to(dtype), (1, 1, 1, 1), mode="reflect")
        # The filters are outer products of (1, 2, 1) and (1, 0, -1): differences of shifted sums.
        down = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
        dx = down[..., :-2] - down[..., 2:]
        right = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
        dy = right[:, :, :-2] - right[:, :, 2:]
        size = torch.hypot(dx, dy)
        which = torch.atan2(dx, dy).mul_(bins / math.pi).floor_().remainder_(bins)
        counts = [_cells(torch.where(which == k, size, 0.0), cell) for k in range(bins)]
        return F.normalize(torch.stack(counts, dim=2), dim=2)


def _cells(x_BCHW: Tensor, cell: int) -> Tensor:
    """Sum over the pixels of each cell."""
    rows = x_BCHW.unflatten(2, (-1, cell)).sum(3)
    return rows.unflatten(3, (-1, cell)).sum(4)


def hog_patches(hog_BCKyx: Tensor, per_patch: int) -> Tensor:
    """Return the cells of each patch as one row, (B, N, P) in the order (channel, bin, row of cells, column of cells).

    Args:
        hog_BCKyx: what `hog` returns.
        per_patch: u.

    Raises:
        ConfigError: when the cells do not make whole patches.
    """
    if per_patch < 1 or hog_BCKyx.shape[-1] % per_patch or hog_BCKyx.shape[-2] % per_patch:
        raise ConfigError(
            f"hog: {hog_BCKyx.shape[-2]} x {hog_BCKyx.shape[-1]} cells do not make patches of {per_patch} cells a side."
        )
    x = hog_BCKyx.unflatten(4, (-1, per_patch)).unflatten(3, (-1, per_patch))  # (B, C, K, gh, u, gw, u)
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)


def hog_from_patches(rows_BNP: Tensor, grid: tuple[int, int], channels: int, bins: int, per_patch: int) -> Tensor:
    """Return (B, C, K, gy, gx) from rows of patches, the inverse of `hog_patches`."""
    x = rows_BNP.unflatten(2, (channels, bins, per_patch, per_patch)).unflatten(1, grid)
    return x.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)


def hog_picture(hog_BCKyx: Tensor, side: int = 15) -> Tensor:
    """Draw each cell's histogram: a line along the edge for every bin, as bright as the bin; mean over the channels.

    Args:
        hog_BCKyx: what `hog` returns, or predictions of it; negatives count as 0.
        side: pixels per cell in the picture.

    Returns:
        (B, 1, gy side, gx side) floats in [0, 1].
    """
    strength_BKyx = hog_BCKyx.float().clamp_min(0).mean(1)
    bins = strength_BKyx.shape[1]
    # The gradient of a bin's middle points along (sin a, cos a) in (x, y), the edge along (cos a, -sin a).
    angle_K = (torch.arange(bins, device=hog_BCKyx.device) + 0.5) * (math.pi / bins)
    along = torch.arange(side, device=hog_BCKyx.device, dtype=torch.float32) - (side - 1) / 2
    x, y = along[None, None, :], along[None, :, None]
    across = (x * angle_K.sin()[:, None, None] + y * angle_K.cos()[:, None, None]).abs()
    reach = (x.square() + y.square()).sqrt() <= side / 2 - 0.5
    lines_Kss = (1.2 - across).clamp(0, 1) * reach
    # The brightest line wins where lines cross.
    drawn = [
        torch.einsum("byx,st->bysxt", strength_BKyx[:, k], lines_Kss[k]).flatten(3, 4).flatten(1, 2)
        for k in range(bins)
    ]
    return torch.stack(drawn).amax(0)[:, None].clamp(0, 1)
