"""Images as tiles: cut out of a grid with gaps and jitter, made equal in brightness and contrast, put back.

Shape suffixes: B images, T = grid * grid tiles (row-major), C channels, s side of a tile, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import ConfigError


def whole_steps(uniforms: Tensor, most: int) -> Tensor:
    """Return integers uniform in 0 .. most from uniforms in [0, 1), int64 of the same shape."""
    # In float32 the largest uniform times a large number may round up.
    return (uniforms * (most + 1)).long().clamp(max=most)


def cut_tiles(
    images_BCHW: Tensor, grid: int, side: int, jitter_BT2: Tensor, shift_BTC2: Tensor | None = None
) -> Tensor:
    """Cut a tile out of every cell of a grid, each at a place of its own.

    Cells are squares of H // grid pixels, pixels left over lie evenly around the grid.

    Args:
        images_BCHW: square images.
        grid: cells per side.
        side: s, at most the side of a cell.
        jitter_BT2: int64 (y, x) of a tile in its cell, from 0 to cell - side.
        shift_BTC2: int64 (y, x) by which a channel of a tile is taken from elsewhere (the edge pixels repeat), or None.

    Returns:
        (B, T, C, s, s).

    Raises:
        ConfigError: for tiles larger than their cells, or images that are not square.
    """
    batch, channels, height, width = images_BCHW.shape
    cell = height // grid
    if height != width or not 1 <= side <= cell:
        raise ConfigError(
            f"cut_tiles: tiles of {side} px do not fit {grid} x {grid} cells of {cell} px in images of "
            f"{height} x {width} px."
        )
    device = images_BCHW.device
    margin = (height - grid * cell) // 2
    corners_T = torch.arange(grid, device=device) * cell + margin
    cells_T2 = torch.stack([corners_T.repeat_interleave(grid), corners_T.repeat(grid)], dim=1)
    at_BTC2 = (cells_T2 + jitter_BT2)[:, :, None]
    if shift_BTC2 is not None:
        at_BTC2 = at_BTC2 + shift_BTC2
    steps_s = torch.arange(side, device=device)
    rows, columns = (at_BTC2[..., None] + steps_s).clamp(0, height - 1).unbind(3)  # (B, T, C or 1, s) each
    images = torch.arange(batch, device=device)[:, None, None, None, None]
    planes = torch.arange(channels, device=device)[:, None, None]
    return images_BCHW[images, planes, rows[..., None], columns[..., None, :]]


def normalise_tiles(tiles_BTCss: Tensor, eps: float = 1e-2) -> Tensor:
    """Return tiles of mean 0 and deviation 1 over their pixels and channels, each by itself.

    The deviation counts as `eps` at least (half a grey level in normalised images): a flat tile stays flat.
    """
    deviation, mean = torch.std_mean(tiles_BTCss, dim=(-3, -2, -1), keepdim=True, correction=0)
    return (tiles_BTCss - mean) / deviation.clamp(min=eps)


def reorder(tiles_BT: Tensor, order_BT: Tensor) -> Tensor:
    """Return tiles (B, T, ...) in another order: place j shows tile order[j]."""
    return tiles_BT[torch.arange(tiles_BT.shape[0], device=tiles_BT.device)[:, None], order_BT]


def lay_out(tiles_BTCss: Tensor, grid: int, cell: int) -> Tensor:
    """Return pictures (B, C, grid * cell, grid * cell) with the tiles in the middle of their cells, zeros between."""
    side = tiles_BTCss.shape[-1]
    before = (cell - side) // 2
    after = cell - side - before
    cells = torch.nn.functional.pad(tiles_BTCss, (before, after, before, after))
    return cells.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
