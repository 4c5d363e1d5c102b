"""Views and reconstructions as sheets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from imprint.viz.reconstructions import ordered, reconstructions, save_reconstructions
from imprint.viz.views_sheet import describe_views, save_views_sheet, views_sheet


def test_many_crops_lie_in_rows_small_ones_stacked() -> None:
    views = {
        "global": torch.full((2, 3, 3, 64, 64), 10, dtype=torch.uint8),
        "local": torch.full((6, 3, 3, 28, 28), 200, dtype=torch.uint8),
    }
    out = views_sheet(views, height=112)
    assert out.shape == (3 * 112 + 8, 2 * 112 + 3 * 49 + 4 * 4, 3)  # 6 local crops, two above each other
    assert out[0, 0].tolist() == [10] * 3 and out[0, 240].tolist() == [200] * 3
    assert describe_views(views) == ["global: 2 x 64 px, 3 channels", "local: 6 x 28 px, 3 channels"]


def test_few_crops_lie_in_columns() -> None:
    views = {"global": torch.arange(5, dtype=torch.uint8).reshape(1, 5, 1, 1, 1).repeat(2, 1, 3, 16, 16) * 20}
    out = views_sheet(views, height=32)
    assert out.shape == (2 * 32 + 4, 5 * 32 + 16, 3)
    assert [int(out[10, 10 + 36 * i, 0]) for i in range(5)] == [0, 20, 40, 60, 80]


def test_deep_and_single_channel_views() -> None:
    out = views_sheet({"v": torch.full((1, 2, 1, 8, 8), 65535, dtype=torch.int32).to(torch.uint16)}, height=16)
    assert (out == 255).all()


def test_reconstructions_in_order(tmp_path: Path) -> None:
    pictures = {n: torch.full((3, 3, 8, 8), v) for n, v in (("reconstruction", 1.0), ("image", 0.0), ("visible", 0.5))}
    assert ordered({**pictures, "extra": pictures["image"]}) == ["image", "visible", "reconstruction", "extra"]
    out = reconstructions(pictures, side=16)
    assert [int(out[4 + 20 * i, 4, 0]) for i in range(3)] == [0, 128, 255]
    found = cv2.imread(str(save_reconstructions(pictures, tmp_path / "r.png")))
    assert found.shape == reconstructions(pictures).shape
    views = {"v": torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)}
    assert np.array_equal(cv2.imread(str(save_views_sheet(views, tmp_path / "v.png"))), views_sheet(views))
