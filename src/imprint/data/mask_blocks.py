"""Compiled drawing of blocks of patches: rejection loops over images, from counter keys.

Every row has its own key, and its n-th random number is number n of the stream of that key, so a row is the same
whoever draws it and whatever is drawn beside it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from imprint.data.compiled import kernel

Bools = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_ULP = 1.0 / (1 << 53)
ATTEMPTS = 10
"""Tries for one block before a mask is left as it is (public code of BEiT, iBOT and DINOv2)."""
PATIENCE = 20
"""Tries for one context before one target fewer is kept clear of it (public code of I-JEPA)."""


@kernel
def uniform(key, n):  # type: ignore[no-untyped-def]
    """Return number n (from 1) of the stream of a key, in [0, 1): `core.rng.uniforms(key, n)[n - 1]`."""
    x = key + np.uint64(n) * _GOLDEN
    x = (x ^ (x >> _30)) * _MUL1
    x = (x ^ (x >> _27)) * _MUL2
    x = x ^ (x >> _31)
    return np.float64(np.int64(x >> _11)) * _ULP


@kernel
def _fill(mask, top, left, h, w, across, value):  # type: ignore[no-untyped-def]
    for i in range(top, top + h):
        for j in range(left, left + w):
            mask[i * across + j] = value


@kernel
def _complete(mask, wanted, key, n):  # type: ignore[no-untyped-def]
    """Add or take away uniformly drawn patches until `wanted` are masked."""
    count = 0
    for i in range(mask.size):
        count += mask[i]
    while count != wanted:
        more = count < wanted
        left = mask.size - count if more else count
        n += 1
        pick = int(uniform(key, n) * left)
        for i in range(mask.size):
            if mask[i] != more:
                if pick == 0:
                    mask[i] = more
                    break
                pick -= 1
        count += 1 if more else -1


@kernel
def _draw_blocks(keys, target, down, across, low, cap, log_aspect, exact, least, masks, placements):  # type: ignore[no-untyped-def]
    for row in range(keys.size):
        key, mask = keys[row], masks[row]
        n, count = 0, 0
        while count < target[row]:
            left_over = min(target[row] - count, cap)
            added = 0
            for _ in range(ATTEMPTS):
                area = low + (left_over - low) * uniform(key, n + 1)  # the bounds may be in falling order
                aspect = math.exp(log_aspect * (2.0 * uniform(key, n + 2) - 1.0))
                h = int(np.rint(math.sqrt(area * aspect)))
                w = int(np.rint(math.sqrt(area / aspect)))
                n += 2
                if h >= down or w >= across:
                    continue
                placements[h, w] += 1
                top = int(uniform(key, n + 1) * (down - h + 1))
                left = int(uniform(key, n + 2) * (across - w + 1))
                n += 2
                fresh = h * w
                for i in range(top, top + h):
                    for j in range(left, left + w):
                        fresh -= mask[i * across + j]
                if 0 < fresh <= left_over:
                    _fill(mask, top, left, h, w, across, True)
                    added = fresh
                    break
            if added == 0:
                break
            count += added
        if exact:
            _complete(mask, int(target[row]), key, n)
        elif count < least:
            _complete(mask, least, key, n)


def draw_blocks(
    keys_R: Keys,
    target_R: npt.NDArray[np.float64],
    grid: tuple[int, int],
    *,
    low: float,
    cap: float,
    min_aspect: float,
    exact: bool = False,
    least: int = 0,
) -> tuple[Bools, Counts]:
    """Mask blocks until the target of each row is reached (BEiT, arXiv 2106.08254, Algorithm 1 and public code).

    A block's area is uniform between `low` and min(what is left, `cap`), its log aspect ratio uniform; sides are
    rounded and must be smaller than the grid's. A block that would mask nothing new, or more than is left, is drawn
    again; after ten failures the row stays as it is.

    Args:
        keys_R: a key per row.
        target_R: patches to mask; need not be whole (iBOT's).
        grid: patches (down, across).
        low: smallest area aimed at.
        cap: largest area aimed at.
        min_aspect: smallest ratio of height to width, the largest is its inverse.
        exact: fill up with single patches.
        least: fill up with single patches to this number only.

    Returns:
        masks: bool (R, N).
        placements: how many blocks of each (height, width) were tried at some place, int64 (down, across).
    """
    down, across = grid
    masks = np.zeros((keys_R.size, down * across), dtype=np.bool_)
    placements = np.zeros((down, across), dtype=np.int64)
    target = np.ascontiguousarray(target_R, dtype=np.float64).reshape(-1)
    keys = np.ascontiguousarray(keys_R).reshape(-1)
    _draw_blocks(
        keys, target, down, across, float(low), float(cap), -math.log(min_aspect), exact, least, masks, placements
    )
    return masks, placements


@kernel
def _draw_contexts(keys, down, across, h, w, regions, floor, contexts):  # type: ignore[no-untyped-def]
    for row in range(keys.size):
        key, context = keys[row], contexts[row]
        n, kept_clear, tries = 0, regions.shape[0], 0
        while True:
            top = int(uniform(key, n + 1) * (down - h))
            left = int(uniform(key, n + 2) * (across - w))
            n += 2
            context[:] = False
            _fill(context, top, left, h, w, across, True)
            seen = h * w
            for i in range(top, top + h):
                for j in range(left, left + w):
                    place = i * across + j
                    for r in range(kept_clear):
                        if regions[r, row, place]:
                            context[place] = False
                            seen -= 1
                            break
            if seen > floor:
                break
            tries += 1
            if tries == PATIENCE:
                tries = 0
                kept_clear = max(kept_clear - 1, 0)


def draw_contexts(
    keys_R: Keys, grid: tuple[int, int], size: tuple[int, int], regions_KRN: Bools, min_keep: int
) -> Bools:
    """Place one block per row and take the regions out of it (I-JEPA, arXiv 2301.08243, public code).

    More than `min_keep` patches must be left; after every 20 failures one region fewer, the last first, is kept clear.

    Args:
        keys_R: a key per row.
        grid: patches (down, across).
        size: height and width of the block, of more than `min_keep` patches, smaller than the grid.
        regions_KRN: what to keep clear of.
        min_keep: see above.

    Returns:
        bool (R, N), True = in the context.
    """
    contexts = np.zeros((keys_R.size, grid[0] * grid[1]), dtype=np.bool_)
    regions = np.ascontiguousarray(regions_KRN)
    _draw_contexts(np.ascontiguousarray(keys_R), *grid, *size, regions, min_keep, contexts)
    return contexts
