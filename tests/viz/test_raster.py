"""Arrays to pictures and files."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.viz.raster import data_uri, encode, mosaic, picture, resized, save_png, sheet, thumbnail


def test_any_depth_and_channels_become_rgb() -> None:
    assert picture(np.full((4, 5), 7, np.uint8)).tolist() == np.full((4, 5, 3), 7).tolist()
    assert picture(np.full((1, 4, 5), 65535, np.uint16), channels_first=True).min() == 255
    assert picture(np.full((4, 5, 3), 0.5, np.float32))[0, 0].tolist() == [128] * 3
    assert picture(np.full((4, 5, 3), np.nan, np.float32)).max() == 0
    two = picture(np.dstack([np.full((2, 2), 9, np.uint8), np.full((2, 2), 8, np.uint8)]))
    assert two[0, 0].tolist() == [9, 8, 0]
    assert picture(np.zeros((2, 2, 7), np.uint8)).shape == (2, 2, 3)


def test_sheet_places_cells() -> None:
    red, blue = np.zeros((4, 6, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    red[:], blue[:] = (255, 0, 0), (0, 0, 255)
    out = sheet([[red, blue], [blue]], gap=1)
    assert out.shape == (4 + 1 + 2, 6 + 1 + 3, 3)
    assert out[0, 0].tolist() == [255, 0, 0] and out[0, 7].tolist() == [0, 0, 255] and out[5, 0].tolist() == [0, 0, 255]
    assert out[4, 0].tolist() == [255] * 3
    with pytest.raises(ValueError, match="at least one"):
        sheet([])


def test_mosaic_and_thumbnail() -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (thumbnail(wide, 4) == 200).all()
    out = mosaic([wide, wide, wide], 4, 2)
    assert out.shape == (8, 8, 3) and (out[4:, :4] == 200).all() and (out[4:, 4:] == 0).all()
    assert resized(wide, 8, 24, smooth=False)[0, 8].tolist() == [200] * 3


def test_png_keeps_every_pixel_and_the_order_of_channels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8)
    path = save_png(image, tmp_path / "deep" / "a.png")
    assert (cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) == image).all()
    uri = data_uri(image, "png")
    assert uri.startswith("data:image/png;base64,") and base64.b64decode(uri.split(",")[1]) == encode(image)
    assert encode(image, "jpeg")[:2] == b"\xff\xd8"
