"""Position embeddings: the fixed sin-cos table, and resizing learned ones as public code does.

Shape suffixes: T tokens (prefix tokens, then the grid row-major), D width.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError, unknown

Layout = Literal["mae", "mocov3"]
Style = Literal["dino", "dinov2_offset", "dinov2_offset_aa", "dinov2_size", "dinov2_size_aa", "mae"]


def sincos_2d(dim: int, grid: tuple[int, int], cls: bool = False, layout: Layout = "mae") -> Tensor:
    r"""Return the fixed 2-d table of D/4 sines and D/4 cosines per axis, omega_i = 10000^(-i / (D/4)).

    `mae` (also I-JEPA): [sin x, cos x, sin y, cos y] with x the column; `mocov3`: the row comes first
    [sin y, cos y, sin x, cos x] (arXiv 2104.02057, App., public code).

    Args:
        dim: D, a multiple of 4.
        grid: (rows, columns).
        cls: put a row of zeros for the class token first.
        layout: which axis fills the first half.

    Returns:
        float64 (rows * columns [+ 1], D), tokens row-major.

    Raises:
        ConfigError: for a width that is no multiple of 4 or an unknown layout.
    """
    if dim < 4 or dim % 4:
        raise ConfigError(f"2-d sin-cos positions need a width that is a multiple of 4, got {dim}.")
    if layout not in get_args(Layout):
        raise unknown("position layout", layout, get_args(Layout))
    omega = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4.0))
    y, x = (torch.arange(n, dtype=torch.float64)[:, None] * omega for n in grid)
    rows = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(grid[0], grid[1], -1)
    columns = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(grid[0], grid[1], -1)
    table_TD = torch.cat([columns, rows] if layout == "mae" else [rows, columns], dim=-1).flatten(0, 1)
    return F.pad(table_TD, (0, 0, 1, 0)) if cls else table_TD


def sincos_3d(dim: int, grid: tuple[int, int, int]) -> Tensor:
    r"""Return the fixed table of a video's tokens: sines and cosines of time, row and column, a third of D each.

    Each axis has w = 2 ceil(D / 6) channels, w / 2 sines, then w / 2 cosines, omega_i = 10000^(-i / (w / 2)); in the
    order [time, row, column], cut off after D (V-JEPA, arXiv 2404.08471, public code with uniform power).

    Args:
        dim: D.
        grid: (frames, rows, columns).

    Returns:
        float64 (frames * rows * columns, D), tokens frame by frame, row-major.
    """
    half = -(-dim // 6)
    omega = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))
    angles = [places[:, axis : axis + 1] * omega for axis in range(3)]
    return torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)[:, :dim]


def interpolate_positions(
    pos_1TD: Tensor,
    grid: tuple[int, int],
    style: Style = "dino",
    prefix: int = 1,
    source: tuple[int, int] | None = None,
) -> Tensor:
    """Resize learned positions to another grid, bicubic (a = -0.75, half-pixel centres), as one of the public codes.

    `dino` and `dinov2_offset` sample with the scale (g + 0.1) / g0 instead of g / g0 (a guard against rounding that
    became part of their checkpoints' behaviour); `dinov2_size` and `mae` sample with g / g0; `_aa` low-passes when
    shrinking. A grid of the source's size returns the input.

    Args:
        pos_1TD: positions (1, prefix + g0 * g0, D).
        grid: (rows, columns) wanted.
        style: which public code to follow.
        prefix: tokens in front that have positions of their own and stay as they are (class token, registers).
        source: (rows, columns) of the input; None means a square.

    Returns:
        (1, prefix + rows * columns, D), the input's dtype; float16 and bfloat16 are computed in float32.

    Raises:
        ConfigError: for an unknown style or a source that is not the grid it should be.
    """
    if style not in get_args(Style):
        raise unknown("position style", style, get_args(Style))
    count = pos_1TD.shape[1] - prefix
    rows, columns = source or (math.isqrt(max(0, count)), math.isqrt(max(0, count)))
    if rows * columns != count or count < 1 or min(grid) < 1:
        raise ConfigError(
            f"interpolate_positions: {pos_1TD.shape[1]} positions less {prefix} prefix tokens are no {rows}x{columns} "
            f"grid to resize to {grid[0]}x{grid[1]}; pass source=(rows, columns)."
        )
    if (rows, columns) == tuple(grid):
        return pos_1TD
    head, body = pos_1TD[:, :prefix], pos_1TD[:, prefix:]
    dtype = body.dtype if body.dtype == torch.float64 else torch.float32
    image = body.to(dtype).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    smooth = style.endswith("_aa")
    if style == "dino" or style.startswith("dinov2_offset"):
        factors = ((grid[0] + 0.1) / rows, (grid[1] + 0.1) / columns)
        resized = F.interpolate(image, scale_factor=factors, mode="bicubic", antialias=smooth)
    else:
        resized = F.interpolate(image, size=tuple(grid), mode="bicubic", antialias=smooth)
    return torch.cat([head, resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_1TD.dtype)], dim=1)
