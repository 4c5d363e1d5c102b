"""Images as sequences of patches, with the values of a patch laid out (row, column, channel), channel last.

Shape suffixes: B images, C channels, H x W pixels, N patches (row-major over the grid), P = p * p * C values per patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imprint.core.errors import ConfigError


def patchify(images_BCHW: Tensor, patch: int) -> Tensor:
    """Cut images into patches (B, N, p * p * C), rows of the grid first.

    Args:
        images_BCHW: any dtype; H and W are multiples of `patch`.
        patch: side p in pixels.

    Raises:
        ConfigError: when the sides are no multiples of the patch.
    """
    batch, channels, height, width = images_BCHW.shape
    if patch < 1 or height % patch or width % patch:
        raise ConfigError(f"patchify: {height}x{width} pixels do not split into {patch}x{patch} patches.")
    grid = images_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches_BNP: Tensor, patch: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Put patches back into images (B, C, H, W); the inverse of `patchify`.

    Args:
        patches_BNP: patches; P is a multiple of p * p.
        patch: side p in pixels.
        grid: (rows, columns) of patches; None means a square.

    Raises:
        ConfigError: when the numbers do not fit together.
    """
    batch, count, values = patches_BNP.shape
    rows, columns = grid or (math.isqrt(count), math.isqrt(count))
    if rows * columns != count or values % (patch * patch):
        raise ConfigError(
            f"unpatchify: {count} patches of {values} values do not make a {rows}x{columns} grid of {patch}x{patch} "
            "patches; pass grid=(rows, columns)."
        )
    cells = patches_BNP.reshape(batch, rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)


def normalise_patches(patches_BNP: Tensor, eps: float = 1e-6) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) within each patch, unbiased variance (MAE, arXiv 2111.06377, Sec. 3).

    float16 and bfloat16 are computed and returned in float32; integers too.
    """
    x = _floats(patches_BNP)
    var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=1)
    return torch.sub(x, mean).div_(torch.sqrt(var + eps))


def denormalise_patches(normalised_BNP: Tensor, reference_BNP: Tensor, eps: float = 1e-6) -> Tensor:
    """Return y sqrt(var + eps) + mean with the statistics of the reference's patches; undoes `normalise_patches`."""
    var, mean = torch.var_mean(_floats(reference_BNP), dim=-1, keepdim=True, correction=1)
    return torch.addcmul(mean, _floats(normalised_BNP), torch.sqrt(var + eps))


def _floats(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
