from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.patchify import denormalise_patches, normalise_patches, patchify, unpatchify


@pytest.mark.parametrize(
    ("patch", "height", "width", "channels"), [(2, 4, 6, 3), (3, 9, 3, 1), (4, 4, 4, 5), (1, 2, 3, 2)]
)
def test_layout_is_row_column_channel_and_inverts(patch: int, height: int, width: int, channels: int) -> None:
    images = torch.arange(2 * channels * height * width).reshape(2, channels, height, width)
    patches = patchify(images, patch)
    grid = (height // patch, width // patch)
    assert patches.shape == (2, grid[0] * grid[1], patch * patch * channels)
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = images[1, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            assert torch.equal(patches[1, row * grid[1] + column], cell.permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, patch, grid), images)


def test_square_grids_need_no_grid() -> None:
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalised_patches_have_unit_unbiased_variance_and_come_back(dtype: torch.dtype) -> None:
    patches = (torch.randn(2, 5, 48, dtype=torch.float64) * 9 + 4).to(dtype)
    flat = normalise_patches(patches)
    assert flat.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(flat.mean(-1), torch.zeros(2, 5, dtype=flat.dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.var(-1, correction=1), torch.ones(2, 5, dtype=flat.dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(denormalise_patches(flat, patches), patches.to(flat.dtype), atol=1e-4, rtol=1e-5)


def test_a_flat_patch_is_finite() -> None:
    assert (normalise_patches(torch.full((1, 2, 12), 7)) == 0).all()


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="10x8"):
        patchify(torch.zeros(1, 3, 10, 8), 4)
    with pytest.raises(ConfigError, match="grid="):
        unpatchify(torch.zeros(1, 6, 12), 2)
    with pytest.raises(ConfigError, match="7 values"):
        unpatchify(torch.zeros(1, 4, 7), 2)
