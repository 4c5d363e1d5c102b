"""Patches of a grid: what is cut, where jitter may go, and frames put together again."""

from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.patch_grid import cut_boxes, grid_boxes, grid_side, jittered, laid_out


def test_the_papers_grid() -> None:
    assert grid_side(256, 64, 32) == 7
    boxes = grid_boxes(256, 256, 64, 32)
    assert boxes.shape == (49, 4)
    assert boxes[8].tolist() == [32.0, 32.0, 64.0, 64.0] and boxes[-1].tolist() == [192.0, 192.0, 64.0, 64.0]
    with pytest.raises(ConfigError, match="do not fit"):
        grid_side(32, 64, 32)


def test_whole_pixel_boxes_are_cut_exactly() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 20, 28)
    found = cut_boxes(images, grid_boxes(20, 28, 8, 4), 8)
    windows = images.unfold(2, 8, 4).unfold(3, 8, 4)  # (B, C, rows, columns, 8, 8)
    expected = windows.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    assert found.shape == (2, 24, 3, 8, 8)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_a_smaller_box_is_stretched_over_the_patch() -> None:
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    found = cut_boxes(ramp, torch.tensor([[[10.0, 4.0, 6.0, 8.0]]]), 12)
    # Output column j lies at 10 + (j + 1/2) / 2 from the left edge, half a pixel beside the ramp's own centres.
    torch.testing.assert_close(found[0, 0, 0, 3], 10 + (torch.arange(12.0) + 0.5) / 2 - 0.5)


def test_jitter_stays_inside_and_has_the_asked_area_and_aspect() -> None:
    torch.manual_seed(0)
    boxes = grid_boxes(64, 64, 16, 8)
    found = jittered(boxes, torch.rand(200, len(boxes), 4), (0.7, 0.9))
    left, top, width, height = found.unbind(-1)
    assert (left >= boxes[:, 0] - 1e-4).all() and (left + width <= boxes[:, 0] + 16 + 1e-4).all()
    assert (top >= boxes[:, 1] - 1e-4).all() and (top + height <= boxes[:, 1] + 16 + 1e-4).all()
    share = width * height / 256
    assert share.min() >= 0.7 - 1e-4 and share.max() <= 0.9 + 1e-4 and abs(float(share.mean()) - 0.8) < 0.005
    aspect = width / height
    assert aspect.min() >= 0.75 - 1e-4 and aspect.max() <= 4 / 3 + 1e-4 and abs(float(aspect.log().mean())) < 0.005
    assert aspect.std() > 0.05
    torch.testing.assert_close(jittered(boxes, torch.rand(len(boxes), 4), (1.0, 1.0)), boxes)
    with pytest.raises(ConfigError, match="area"):
        jittered(boxes, torch.rand(len(boxes), 4), (0.5, 1.5))


def test_patches_laid_out_again_are_the_image() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 24, 24)
    patches = cut_boxes(images, grid_boxes(24, 24, 8, 4), 8)
    torch.testing.assert_close(laid_out(patches, 24, 24, 4), images, atol=5e-5, rtol=0)
