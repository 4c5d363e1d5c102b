"""Random patch masks."""

from __future__ import annotations

import numpy as np
import pytest

from imprint.core.errors import ConfigError
from imprint.data.mask_kinds import Mask, RandomMask
from imprint.data.masks import Place, draw_masks


def draw_mask(mask: Mask, seed: int, epoch: int, index_B: np.ndarray, name: str | None = None) -> np.ndarray:
    """The masks of one process that has the whole batch."""
    place = Place(seed=seed, epoch=epoch, step=0, index_B=index_B, first=0, total=index_B.size)
    return draw_masks(mask, place)[name or mask.name]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("grid", [(14, 14), (7, 5), (2, 2)])
def test_exactly_the_share_is_kept_in_every_row(ratio: float, grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    keep = int(patches * (1 - ratio))
    mask = RandomMask(name="m", count=3, grid=grid, ratio=ratio)
    if keep == 0:
        with pytest.raises(ConfigError, match="keeps 0"):
            draw_mask(mask, 0, 0, np.arange(4))
        return
    drawn = draw_mask(mask, 0, 0, np.arange(4))
    assert drawn.shape == (3, 4, patches) and drawn.dtype == np.bool_
    assert (drawn.sum(-1) == patches - keep).all()


def test_a_row_depends_on_its_keys_alone() -> None:
    mask = RandomMask(name="m", count=2, grid=(8, 8))
    whole = draw_mask(mask, 5, 2, np.arange(100))
    np.testing.assert_array_equal(draw_mask(mask, 5, 2, np.array([40, 7])), whole[:, [40, 7]])
    assert not np.array_equal(whole[0], whole[1])
    for other in (draw_mask(mask, 6, 2, np.arange(100)), draw_mask(mask, 5, 3, np.arange(100))):
        assert (other == whole).mean() < 0.7
    renamed = RandomMask(name="n", count=2, grid=(8, 8))
    assert not np.array_equal(draw_mask(renamed, 5, 2, np.arange(100)), whole)


def test_every_patch_is_masked_alike() -> None:
    mask = RandomMask(name="m", grid=(4, 4), ratio=0.75)
    share = draw_mask(mask, 0, 0, np.arange(20_000)).mean(axis=(0, 1))
    np.testing.assert_allclose(share, 0.75, atol=0.015)  # five standard deviations of 20,000 draws
