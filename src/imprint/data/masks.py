"""Patch masks, drawn for a whole batch at once from counter keys.

Shape suffixes: V masks per image, B rows of this process, N patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError
from imprint.core.rng import key, uniforms
from imprint.data.mask_blocks import Bools, Counts, Keys, draw_blocks
from imprint.data.mask_kinds import (
    BlockMask,
    InverseBlockMask,
    Mask,
    RandomMask,
    ShareMask,
    SpreadMask,
    TargetsMask,
    UnitMask,
)
from imprint.data.mask_targets import draw_inverse, draw_targets


@dataclass(frozen=True, kw_only=True)
class Place:
    """Whose masks are drawn.

    Attributes:
        seed: the run's seed.
        epoch: the pass.
        step: number of the step, for what a batch shares.
        index_B: these rows' samples.
        first: place of the first of these rows in the global batch.
        total: rows of the global batch.
    """

    seed: int
    epoch: int
    step: int
    index_B: npt.NDArray[np.int64]
    first: int
    total: int


def draw_masks(mask: Mask, at: Place) -> dict[str, Bools]:
    """Return the masks of one kind by name, bool (count, B, N), for this process's rows of the global batch.

    What belongs to one image is keyed by (seed, epoch, sample, name, copy); what a batch shares by (seed, step, name),
    and places in the batch by their number in the global one, so any number of processes draws the same.

    Raises:
        ConfigError: for settings that no mask can meet on this grid.
    """
    if min(mask.grid) < 1:
        raise ConfigError(f"mask '{mask.name}': a grid of {mask.grid[0]} x {mask.grid[1]} has no patches.")
    if isinstance(mask, TargetsMask):
        return draw_targets(mask, at.seed, at.step, at.first, at.index_B.size, at.total)
    if mask.count < 1:
        raise ConfigError(f"mask '{mask.name}': count must be at least 1, got {mask.count}.")
    if isinstance(mask, BlockMask | ShareMask | SpreadMask):
        return {mask.name: draw_with_placements(mask, at)[0]}
    keys_VB = _keys(mask, at)
    if isinstance(mask, RandomMask):
        return {mask.name: _random(mask, at, keys_VB)}
    if isinstance(mask, UnitMask):
        return {mask.name: _unit(mask, keys_VB)}
    assert isinstance(mask, InverseBlockMask)
    return {mask.name: draw_inverse(mask, keys_VB)}


def draw_with_placements(mask: BlockMask | ShareMask | SpreadMask, at: Place) -> tuple[Bools, Counts]:
    """Return masks made of blocks, (count, B, N), and how many blocks of each size were tried, int64 (down, across).

    The second counts, per (height, width), the blocks that were smaller than the grid and so got a place, whether they
    were then taken or drawn again: the statistics by which public codes are compared.
    """
    if isinstance(mask, SpreadMask):
        return _spread(mask, at)
    return _block(mask, _keys(mask, at)) if isinstance(mask, BlockMask) else _share(mask, _keys(mask, at))


def _keys(mask: RandomMask | BlockMask | ShareMask | UnitMask | InverseBlockMask, at: Place) -> Keys:
    return key(at.seed, at.epoch, at.index_B[None, :], mask.name, np.arange(mask.count)[:, None])


def _random(mask: RandomMask, at: Place, keys_VB: Keys) -> Bools:
    """Keep the patches with the smallest of N uniforms (MAE, arXiv 2111.06377, App. A.1: shuffle, keep the head)."""
    patches = mask.grid[0] * mask.grid[1]
    keep = int(patches * (1 - mask.ratio))
    if not 0 < keep <= patches:
        raise ConfigError(
            f"mask '{mask.name}': ratio {mask.ratio:g} of {patches} patches keeps {keep}; choose a ratio in "
            "[0, 1) that keeps at least one."
        )
    if mask.shared:
        keys_V1 = key(at.seed, at.step, "shared", mask.name, np.arange(mask.count)[:, None])
        return np.repeat(~_smallest(keys_V1, patches, keep), at.index_B.size, axis=1)
    return ~_smallest(keys_VB, patches, keep)


def _smallest(keys: Keys, size: int, chosen: int) -> Bools:
    """Choose `chosen` of `size` places uniformly, without replacement: bool keys.shape + (size,)."""
    out = np.zeros((*keys.shape, size), dtype=np.bool_)
    order = np.argpartition(uniforms(keys, size), min(chosen, size - 1), axis=-1)
    np.put_along_axis(out, order[..., :chosen], True, axis=-1)
    return out


def _aspect(mask: BlockMask | ShareMask | SpreadMask) -> float:
    if not 0 < mask.min_aspect <= 1:
        raise ConfigError(f"mask '{mask.name}': min_aspect must lie in (0, 1], got {mask.min_aspect:g}.")
    return mask.min_aspect


def _block(mask: BlockMask, keys_VB: Keys) -> tuple[Bools, Counts]:
    """Blocks up to a number of patches. A row in which no block found its place gets one random patch."""
    down, across = mask.grid
    what = f"mask '{mask.name}' on a grid of {down} x {across} patches"
    if not 0 < mask.patches < down * across:
        raise ConfigError(f"{what}: patches must lie in 1..{down * across - 1}, got {mask.patches}.")
    fits = min(mask.patches, (down - 1) * (across - 1))
    if not 0 < mask.min_block <= fits:
        raise ConfigError(
            f"{what}: blocks of at least min_block={mask.min_block} patches do not fit when {mask.patches} are to be "
            f"masked; set min_block to 1..{fits} (about a sixth of what is masked)."
        )
    if mask.max_block is not None and mask.max_block < mask.min_block:
        raise ConfigError(f"{what}: max_block={mask.max_block} is less than min_block={mask.min_block}.")
    target = np.full(keys_VB.size, float(mask.patches))
    masks, placements = draw_blocks(
        keys_VB,
        target,
        mask.grid,
        low=mask.min_block,
        cap=mask.patches if mask.max_block is None else mask.max_block,
        min_aspect=_aspect(mask),
        exact=mask.exact,
        least=1,
    )
    return masks.reshape(*keys_VB.shape, -1), placements


def _share(mask: ShareMask, keys_VB: Keys) -> tuple[Bools, Counts]:
    """Draw each mask's share, then blocks of it, or uniformly random patches."""
    down, across = mask.grid
    patches = down * across
    for mean, spread in mask.shares:
        if not 0 <= spread <= mean <= mean + spread <= 1:
            raise ConfigError(f"mask '{mask.name}': the share {mean:g} +- {spread:g} must stay within 0 and 1.")
    if mask.shape not in ("block", "random") or not mask.shares:
        raise ConfigError(
            f"mask '{mask.name}': shape must be 'block' or 'random' and shares at least one pair; "
            f"got '{mask.shape}' and {len(mask.shares)} shares."
        )
    target_VB = draw_shares(mask, keys_VB) * patches
    place_keys = key(keys_VB, "place")
    if mask.shape == "random":
        rank = np.argsort(np.argsort(uniforms(place_keys, patches), axis=-1), axis=-1)
        return rank < target_VB.astype(np.int64)[..., None], np.zeros(mask.grid, dtype=np.int64)
    # The public code's smallest area; a block aimed at less than half a patch is empty and is drawn again.
    low = (min(mask.grid) // 3) ** 2
    masks, placements = draw_blocks(place_keys, target_VB, mask.grid, low=low, cap=patches, min_aspect=_aspect(mask))
    return masks.reshape(*keys_VB.shape, -1), placements


def draw_shares(mask: ShareMask, keys: Keys) -> npt.NDArray[np.float64]:
    """Return the share of patches of each key's mask: one of `shares` with equal probability, uniform in its range."""
    draws = uniforms(keys, 2)
    means, spreads = np.array(mask.shares, dtype=np.float64).T
    chosen = (draws[..., 0] * means.size).astype(np.int64)
    return np.asarray(means[chosen] + spreads[chosen] * (2 * draws[..., 1] - 1))


def _spread(mask: SpreadMask, at: Place) -> tuple[Bools, Counts]:
    """Give the masked crops of the global batch, in random order, rising slices of the range of shares."""
    targets_VB, keys_VB = spread_targets(mask, at)
    patches = mask.grid[0] * mask.grid[1]
    masks, placements = draw_blocks(
        keys_VB,
        targets_VB.astype(np.float64),
        mask.grid,
        low=mask.min_block,
        cap=max(mask.max_block * patches, 1.0),
        min_aspect=_aspect(mask),
    )
    return masks.reshape(*keys_VB.shape, -1), placements


def spread_targets(mask: SpreadMask, at: Place) -> tuple[npt.NDArray[np.int64], Keys]:
    """Return how many patches of each crop of these rows to mask, and the keys of their blocks, both (V, B)."""
    if not 0 <= mask.low <= mask.high <= 1 or not 0 <= mask.probability <= 1:
        raise ConfigError(
            f"mask '{mask.name}': low {mask.low:g}, high {mask.high:g} and probability {mask.probability:g} must lie "
            "in [0, 1], low not above high."
        )
    if mask.min_block < 1 or mask.max_block <= 0:
        raise ConfigError(f"mask '{mask.name}': min_block and max_block must be above 0.")
    patches, crops = mask.grid[0] * mask.grid[1], mask.count * at.total
    masked = int(crops * mask.probability)
    rank = np.empty(crops, dtype=np.int64)
    rank[np.argsort(uniforms(key(at.seed, at.step, mask.name, "order"), crops))] = np.arange(crops)
    crop_VB = np.arange(mask.count)[:, None] * at.total + at.first + np.arange(at.index_B.size)
    keys_VB = key(at.seed, at.step, mask.name, "crop", crop_VB)
    slice_VB = rank[crop_VB] + uniforms(keys_VB, 1)[..., 0]
    share_VB = mask.low + (mask.high - mask.low) * slice_VB / max(masked, 1)
    targets_VB = np.where(rank[crop_VB] < masked, (patches * share_VB).astype(np.int64), 0)
    return targets_VB, key(keys_VB, "blocks")


def most_masked(mask: SpreadMask, total: int) -> int:
    """Return a bound on the patches masked in a global batch of `total` rows: every share at the top of its slice.

    The shares are rounded to float32 first, as the public code does.
    """
    masked, patches = int(mask.count * total * mask.probability), mask.grid[0] * mask.grid[1]
    tops = np.linspace(mask.low, mask.high, masked + 1).astype(np.float32)[1:]
    return int((np.float32(patches) * tops).astype(np.int64).sum())


def _unit(mask: UnitMask, keys_VB: Keys) -> Bools:
    """Random units, enlarged to the patches of the grid."""
    down, across = mask.grid
    if mask.unit < 1 or down % mask.unit or across % mask.unit:
        raise ConfigError(
            f"mask '{mask.name}': units of {mask.unit} x {mask.unit} patches do not tile a grid of {down} x {across}; "
            "choose an image size that is a multiple of the unit."
        )
    units = (down // mask.unit, across // mask.unit)
    chosen = math.ceil(units[0] * units[1] * mask.ratio)
    if not 0 < mask.ratio <= 1:
        raise ConfigError(f"mask '{mask.name}': ratio must lie in (0, 1], got {mask.ratio:g}.")
    small = _smallest(keys_VB, units[0] * units[1], chosen).reshape(*keys_VB.shape, *units)
    return small.repeat(mask.unit, axis=-2).repeat(mask.unit, axis=-1).reshape(*keys_VB.shape, down * across)
