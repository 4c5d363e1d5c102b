"""Random patch masks, drawn for a whole batch at once from the keys of its samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError
from imprint.core.rng import key, uniforms
from imprint.data.views import Mask


def draw_mask(mask: Mask, seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return bool (count, B, N), True = masked, with exactly int(N * (1 - ratio)) patches kept in every row.

    The patches with the smallest of N uniforms of the key (seed, epoch, sample, mask name, copy) are kept
    (MAE, arXiv 2111.06377, App. A.1: shuffle, keep the head).

    Raises:
        ConfigError: when nothing or less than one patch would be kept.
    """
    patches = mask.grid[0] * mask.grid[1]
    keep = int(patches * (1 - mask.ratio))
    if not 0 < keep <= patches:
        raise ConfigError(
            f"mask '{mask.name}': ratio {mask.ratio:g} of {patches} patches keeps {keep}; choose a ratio in "
            "[0, 1) that keeps at least one."
        )
    copies = np.arange(mask.count)[:, None]
    noise = uniforms(key(seed, epoch, index_B[None, :], mask.name, copies), patches)
    order = np.argpartition(noise, min(keep, patches - 1), axis=-1)
    masked = np.ones(noise.shape, dtype=np.bool_)
    np.put_along_axis(masked, order[..., :keep], False, axis=-1)
    return masked
