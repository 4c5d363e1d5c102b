"""Label-free measures over real passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.labelfree import LabelFree, LabelFreeConfig, augmentations, augmented_features, measure
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import EvalData


def test_measures_tell_spread_from_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(400, 32, generator=generator)
    line = torch.randn(400, 1, generator=generator) @ torch.randn(1, 32, generator=generator)
    wide, flat = measure(spread), measure(line + 1e-3 * spread)
    assert wide["rankme"] > 28 and flat["rankme"] < 3
    assert wide["effective_rank"] > 28 and flat["effective_rank"] < 3
    assert wide["std"] == pytest.approx(1.0, abs=0.05)
    assert wide["uniformity"] < flat["uniformity"]
    assert wide["alpha_req"] < 1


def test_too_few_dimensions_are_left_out_not_guessed(unlabelled) -> None:
    assert "alpha_req" not in measure(torch.randn(50, 4))
    constant = ArraySource(np.full((12, 8, 8, 3), 90, np.uint8))
    report = LabelFree().run(
        PixelEncoder(8), EvalData(train=constant), LabelFreeConfig(device="cpu", cache=False, lidar_images=0)
    )
    assert (
        set(report.metrics) & {"effective_rank", "alpha_req"} == set() or report.metrics["effective_rank"].value <= 1.5
    )
    assert "NaN" not in report.to_json()


def test_protocol_needs_no_labels(unlabelled) -> None:
    config = LabelFreeConfig(device="cpu", cache=False, lidar_images=20, lidar_views=3, images=30)
    report = LabelFree().run(PixelEncoder(8), EvalData(train=unlabelled), config)
    assert report.main == "rankme" and report.metrics["rankme"].n == 30
    assert {"lidar", "alignment", "uniformity", "std"} <= set(report.metrics)
    assert report.metrics["alignment"].value > 0 and report.metrics["lidar"].value >= 1
    assert report.cost["images"] == 30 + 60
    with pytest.raises(DataError, match="at least 2"):
        LabelFree().run(PixelEncoder(8), EvalData(train=unlabelled.subset([0])), config)
    with pytest.raises(ConfigError):
        LabelFreeConfig(lidar_views=1)


def test_augmented_features_are_one_set_per_image(unlabelled) -> None:
    config = LabelFreeConfig(device="cpu", lidar_views=4, batch_size=16)
    looks = augmented_features(PixelEncoder(8), unlabelled, EvalData(train=unlabelled), config)
    assert looks.shape == (40, 4, 192)
    own = (looks[:, :1] - looks[:, 1:]).norm(dim=2).mean()
    assert own > 0  # crops differ
    again = augmented_features(PixelEncoder(8), unlabelled, EvalData(train=unlabelled), config)
    assert torch.equal(looks, again)
    assert augmentations(224, 2).look.blur == 0.5
