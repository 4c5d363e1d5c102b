"""Holes in images, of any shape, drawn on the device from keys: the same for a sample on every process.

Shape suffixes: B images, H x W pixels (S x S: squares), K blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.ops.keyed import keyed_uniforms


def centre_box(side: int, share: float) -> tuple[int, int]:
    """Return first and last-plus-one pixel of the centred square whose side is `share` of the image's, an even number.

    Raises:
        ConfigError: for a share outside (0, 1), or a square without pixels.
    """
    half = round(side * share / 2) if 0 < share < 1 else 0
    if half < 1 or 2 * half >= side:
        raise ConfigError(f"a centred hole of {share} of {side} pixels leaves no hole or no image; try 0.5.")
    return side // 2 - half, side // 2 + half


def noise_regions(key: int, index_B: Tensor, side: int, *, cells: float, share: tuple[float, float]) -> Tensor:
    """Return masks of arbitrary shapes: where smooth noise is low (context encoders, arXiv 1604.07379, Sec. 3.3).

    Uniform numbers on a coarse lattice, shifted at random, are enlarged bicubically; the lowest values become the hole.
    The public code takes a fixed threshold over one large pattern and draws windows until the area fits; here each
    image has its own pattern, and the threshold that gives the area drawn for it, so nothing is drawn in vain.

    Args:
        key: of this purpose and step (`imprint.core.rng.seed_of`).
        index_B: int64, the samples' positions in the source.
        side: S.
        cells: lattice cells along a side; the more the finer the shapes.
        share: bounds of the hole's area as a share of the image, drawn uniformly.

    Returns:
        bool (B, 1, S, S), True in the hole.

    Raises:
        ConfigError: for shares outside (0, 1), or cells below 1.
    """
    low, high = share
    if not 0 < low <= high < 1 or cells < 1:
        raise ConfigError(f"regions of {share} of the image with {cells} cells cannot be; try (0.2, 0.25) and 7.68.")
    lattice = math.ceil(cells) + 4  # one cell for the shift, and a border that the bicubic filter may look at
    drawn = keyed_uniforms(key, index_B, lattice * lattice + 3)
    noise_B1ll = drawn[:, 3:].unflatten(1, (1, lattice, lattice))
    at_S = torch.linspace(0, cells, side, device=index_B.device) + 1  # in cells, from the second lattice point on
    x_BS, y_BS = (at_S + drawn[:, i, None] for i in (0, 1))
    grid_BSS2 = torch.stack(torch.broadcast_tensors(x_BS[:, None, :], y_BS[:, :, None]), -1) * (2 / (lattice - 1)) - 1
    smooth_BP = F.grid_sample(noise_B1ll, grid_BSS2, mode="bicubic", align_corners=True).flatten(1)
    area_B = ((low + (high - low) * drawn[:, 2]) * (side * side)).floor().long().clamp_min(1)
    limit_B1 = smooth_BP.sort(dim=1).values.gather(1, area_B[:, None] - 1)
    return (smooth_BP <= limit_B1).unflatten(1, (1, side, side))


def block_regions(
    key: int, index_B: Tensor, side: int, *, count: int, sides: tuple[float, float], most: float
) -> Tensor:
    """Return unions of squares at random places (context encoders, arXiv 1604.07379, Sec. 3.3, random block).

    Up to `count` squares, which may overlap; one that would bring the hole above `most` of the image is left out.

    Args:
        key: of this purpose and step.
        index_B: int64, the samples' positions in the source.
        side: S.
        count: K.
        sides: bounds of the squares' sides as shares of the image's.
        most: largest area of the hole as a share of the image.

    Returns:
        bool (B, 1, S, S), True in the hole.

    Raises:
        ConfigError: for squares that are larger than the hole may be, or bounds out of order.
    """
    low, high = sides
    if count < 1 or not 0 < low <= high < 1 or high * high > most:
        raise ConfigError(
            f"{count} blocks of sides {sides} in a hole of at most {most} of the image cannot be; the largest block "
            "must fit into the hole, for example sides (0.125, 0.25) and 0.25."
        )
    u_B3K = keyed_uniforms(key, index_B, 3 * count).unflatten(1, (3, count))
    long_BK = ((low + (high - low) * u_B3K[:, 0]) * side).floor().clamp_min(1)
    at_S = torch.arange(side, device=index_B.device)
    inside = []
    for u_BK in (u_B3K[:, 1], u_B3K[:, 2]):
        first_BK1 = (u_BK * (side - long_BK + 1)).floor()[..., None]
        inside.append((at_S >= first_BK1) & (at_S < first_BK1 + long_BK[..., None]))
    hole_BSS = torch.zeros(len(index_B), side, side, dtype=torch.bool, device=index_B.device)
    for k in range(count):  # whether a square still fits depends on those before it
        more_BSS = hole_BSS | (inside[1][:, k, :, None] & inside[0][:, k, None, :])
        fits_B11 = (more_BSS.flatten(1).sum(1) <= most * side * side)[:, None, None]
        hole_BSS = torch.where(fits_B11, more_BSS, hole_BSS)
    return hole_BSS[:, None]
