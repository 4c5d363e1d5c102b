"""The raw-pixel baseline."""

from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.evals.pixels import PixelEncoder


def test_pixels_are_the_features() -> None:
    images = torch.rand(3, 3, 8, 8)
    found = PixelEncoder(8).encode(images)
    assert torch.equal(found.pooled_BD, images.flatten(1)) and found.cls_BD is None and found.grid == (8, 8)
    assert torch.equal(found.patches_BND[:, 9], images[:, :, 1, 1])


def test_large_images_are_averaged_down() -> None:
    images = torch.rand(2, 1, 64, 64)
    found = PixelEncoder(64, channels=1, side=16).encode(images)
    assert found.pooled_BD.shape == (2, 256) == (2, PixelEncoder(64, channels=1, side=16).embed_dim)
    torch.testing.assert_close(found.pooled_BD.mean(1), images.flatten(1).mean(1), rtol=0.02, atol=0.02)


def test_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="no tokens"):
        PixelEncoder(8).encode(torch.rand(1, 3, 8, 8), keep_BM=torch.zeros(1, 2, dtype=torch.int64))
