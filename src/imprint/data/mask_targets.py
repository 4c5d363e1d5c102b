"""Masks made of one block each: I-JEPA's targets and context, and CAPI's inverse block.

Shape suffixes: V masks per image, K targets, R rows of the global batch, B rows of this process, N patches.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError
from imprint.core.rng import key, uniforms
from imprint.data.mask_blocks import Bools, Keys, draw_contexts
from imprint.data.mask_kinds import InverseBlockMask, TargetsMask

Pair = tuple[float, float]
Ints = npt.NDArray[np.int64]


def draw_targets(mask: TargetsMask, seed: int, step: int, first: int, rows: int, total: int) -> dict[str, Bools]:
    """Return targets (K, B, N) and contexts (1, B, N) of rows first..first + rows of the global batch.

    Sizes are drawn once per step; one uniform gives both a block's share and its aspect ratio, as in the public code.
    The contexts of all `total` rows are drawn by everyone, because their smallest number is that of the batch.
    """
    down, across = mask.grid
    _check_targets(mask)
    shares = uniforms(key(seed, step, mask.name, "sizes"), 2)
    target_size = block_size(mask.grid, mask.target_scale, mask.target_aspect, float(shares[0]))
    context_size = block_size(mask.grid, mask.context_scale, mask.context_aspect, float(shares[1]))
    row_R = np.arange(total)
    places = uniforms(key(seed, step, mask.name, "targets", np.arange(mask.targets)[:, None], row_R), 2)
    # Exclusive of the last place, as in the public code; a block is smaller than the grid, so there is one.
    top_KR = (places[..., 0] * (down - target_size[0])).astype(np.int64)
    left_KR = (places[..., 1] * (across - target_size[1])).astype(np.int64)
    targets_KRN = _blocks(mask.grid, top_KR, left_KR, *target_size)
    clear = targets_KRN[:0] if mask.overlap else targets_KRN
    contexts_RN = draw_contexts(
        key(seed, step, mask.name, "context", row_R), mask.grid, context_size, clear, mask.min_keep
    )
    smallest = int(contexts_RN.sum(axis=1).min())
    here = slice(first, first + rows)
    contexts_BN = contexts_RN[here]
    contexts_BN &= np.cumsum(contexts_BN, axis=1) <= smallest
    return {mask.name: targets_KRN[:, here], f"{mask.name}:context": contexts_BN[None]}


def block_size(grid: tuple[int, int], scale: Pair, aspect: Pair, u: float) -> tuple[int, int]:
    """Return a block's (height, width) for u in [0, 1): both bounds are walked through together; under the grid's."""
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(h, grid[0] - 1), min(w, grid[1] - 1)


def _check_targets(mask: TargetsMask) -> None:
    down, across = mask.grid
    what = f"mask '{mask.name}' on a grid of {down} x {across} patches"
    if mask.targets < 1:
        raise ConfigError(f"{what}: targets must be at least 1, got {mask.targets}.")
    pairs = {"target_scale": mask.target_scale, "context_scale": mask.context_scale}
    for name, (low, high) in (pairs | {"target_aspect": mask.target_aspect}).items():
        if not 0 < low <= high:
            raise ConfigError(f"{what}: {name} must be two rising numbers above 0, got {low:g} and {high:g}.")
    for u in (0.0, 1.0):
        h, w = block_size(mask.grid, mask.target_scale, mask.target_aspect, u)
        if h < 1 or w < 1:
            raise ConfigError(
                f"{what}: a target of {h} x {w} patches is empty; raise target_scale or use more patches."
            )
        h, w = block_size(mask.grid, mask.context_scale, mask.context_aspect, u)
        if h * w <= mask.min_keep:
            raise ConfigError(
                f"{what}: a context block of {h} x {w} never holds more than min_keep={mask.min_keep} patches; "
                f"set min_keep to at most {max(h * w - 1, 0)}, or use a finer grid."
            )


def draw_inverse(mask: InverseBlockMask, keys: Keys) -> Bools:
    """Return keys.shape + (N,): all masked but a block of N - int(ratio N) patches, which may wrap around the edges.

    The block's log aspect ratio is uniform within what the grid allows; its sides are rounded up and the last patches
    of its last row dropped, so that the number is exact (public code of CAPI).
    """
    down, across = mask.grid
    patches = down * across
    visible = patches - int(mask.ratio * patches + 1e-9)
    if not 0 <= mask.ratio < 1 or not 0 < mask.min_aspect <= 1:
        raise ConfigError(
            f"mask '{mask.name}': ratio {mask.ratio:g} must lie in [0, 1) and min_aspect {mask.min_aspect:g} in (0, 1]."
        )
    draws = uniforms(keys, 5)
    bound = -math.log(mask.min_aspect)
    lowest = max(-bound, math.log(visible / across**2))
    highest = min(bound, math.log(down**2 / (visible + 1e-5)))
    aspect = np.exp(lowest + (highest - lowest) * draws[..., 0])
    # Where the grid's edge cuts one side, the other holds the rest.
    h = np.clip(np.ceil(np.sqrt(visible * aspect)).astype(np.int64), -(-visible // across), down)
    w = np.clip(np.ceil(np.sqrt(visible / aspect)).astype(np.int64), -(-visible // h), across)
    top = (draws[..., 1] * (down - h + 1)).astype(np.int64)
    left = (draws[..., 2] * (across - w + 1)).astype(np.int64)
    if mask.roll:
        top = top + (draws[..., 3] * down).astype(np.int64)
        left = left + (draws[..., 4] * across).astype(np.int64)
    y = (np.arange(down) - top[..., None]) % down  # within the block, wrapped
    x = (np.arange(across) - left[..., None]) % across
    inside = (y < h[..., None])[..., :, None] & (x < w[..., None])[..., None, :]
    inside &= y[..., :, None] * w[..., None, None] + x[..., None, :] < visible
    return ~inside.reshape(*keys.shape, patches)


def _blocks(grid: tuple[int, int], top: Ints, left: Ints, h: int, w: int) -> Bools:
    y = np.arange(grid[0]) - top[..., None]
    x = np.arange(grid[1]) - left[..., None]
    inside = ((y >= 0) & (y < h))[..., :, None] & ((x >= 0) & (x < w))[..., None, :]
    return inside.reshape(*top.shape, grid[0] * grid[1])
