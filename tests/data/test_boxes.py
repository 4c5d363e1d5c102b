"""Crops in pixels: torchvision's rule from given uniforms, its fallback, the evaluation view, reduced decoding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import imprint.backbones.torchvision_compat  # noqa: F401 - before torchvision
from imprint.data.boxes import boxes, reduced
from imprint.data.draws import draw
from imprint.data.views import CenterCrop, Crop, View


def resolve(crop: Crop | CenterCrop, height: int, width: int, count: int = 50) -> Any:
    view = View(name="v", count=count, crop=crop)
    drawn = draw([view], 0, 0, [3])["v"]
    return boxes(crop, drawn, 0, height, width), drawn


def in_pixels(box: Any, size: int) -> tuple[int, int, int, int]:
    top, left = round(box[0]), round(box[4])
    assert (box[2], box[6]) == (top, left)
    return top, left, round(box[1] * size), round(box[5] * size)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (64, 64), (31, 200), (7, 5)])
def test_the_first_candidate_that_fits(height: int, width: int) -> None:
    crop = Crop(size=32, scale=(0.3, 1.0))
    found, drawn = resolve(crop, height, width)
    tries = 0
    for v, box in enumerate(found):
        for share, aspect in zip(drawn.shares_BVT[0, v], drawn.aspects_BVT[0, v], strict=True):
            tries += 1
            w, h = (round(math.sqrt(share * height * width * a)) for a in (aspect, 1 / aspect))
            if 0 < w <= width and 0 < h <= height:
                place = drawn.place_BV2[0, v]
                expected = (int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1)), h, w)
                break
        else:
            expected = None
        if expected is not None:
            assert in_pixels(box, 32) == expected
        assert 0 <= box[2] < box[3] <= height and 0 <= box[6] < box[7] <= width
    assert tries > len(found), "some first candidates must have been refused, or this tests nothing"


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (1, 50), (60, 50)])
def test_the_fallback_is_torchvisions(height: int, width: int) -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop

    crop = Crop(size=16, scale=(1.2, 1.3))  # larger than the image: no candidate fits
    found, _ = resolve(crop, height, width, 2)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.2, 1.3], [3 / 4, 4 / 3])
    assert in_pixels(found[0], 16) == tuple(expected)


def test_without_ratio_a_crop_keeps_the_images_own() -> None:
    whole: Any = None
    crop = Crop(size=16, scale=(1.0, 1.0), ratio=whole)
    found, _ = resolve(crop, 30, 70, 3)
    assert all(in_pixels(box, 16) == (0, 0, 30, 70) for box in found)
    found, _ = resolve(Crop(size=16, scale=(0.25, 0.25), ratio=whole), 300, 700, 3)
    assert all(in_pixels(box, 16)[2:] == (150, 350) for box in found)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224)])
def test_the_centre_is_a_window_into_the_resized_image(height: int, width: int) -> None:
    found, _ = resolve(CenterCrop(size=224, resize=256), height, width, 1)
    y, down, y0, y1, x, across, x0, x1 = found[0]
    assert (y0, y1, x0, x1) == (0, height, 0, width)
    assert min(height / down, width / across) == pytest.approx(256)
    assert y + 112 * down == pytest.approx(height / 2, abs=down) and x + 112 * across == pytest.approx(
        width / 2, abs=across
    )


def test_reduced_boxes_cover_the_same_part() -> None:
    found, _ = resolve(Crop(size=32), 375, 500)
    small = reduced(found, 4, 94, 125)
    assert np.allclose(small[:, [0, 1, 4, 5]] * 4, found[:, [0, 1, 4, 5]])
    assert (small[:, 2] * 4 <= found[:, 2]).all() and (small[:, 2] * 4 > found[:, 2] - 4).all()
    assert (small[:, 3] <= 94).all() and (small[:, 7] <= 125).all() and (small[:, 3] * 4 >= found[:, 3]).all()
