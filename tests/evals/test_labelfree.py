"""Label-free measures over real passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.labelfree import (
    LabelFree,
    LabelFreeConfig,
    augmentations,
    augmented_features,
    infonce_bound,
    measure,
    measure_augmented,
    measure_features,
)
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import EvalData
from imprint.ops import ranks


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


def test_the_seed_reaches_the_augmentations(unlabelled) -> None:
    data = EvalData(train=unlabelled)
    looks = [
        augmented_features(PixelEncoder(8), unlabelled, data, LabelFreeConfig(device="cpu", lidar_views=2, seed=seed))
        for seed in (0, 1, 1)
    ]
    assert not torch.equal(looks[0], looks[1]) and torch.equal(looks[1], looks[2])


def test_streamed_measures_equal_those_of_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 40, generator=generator) * torch.logspace(0, -2, 40) + 0.3
    found = measure_features(x, LabelFreeConfig()).metrics
    exact = {
        "rankme": ranks.rankme(x),
        "effective_rank": ranks.effective_rank(x),
        "alpha_req": ranks.alpha_req(x).alpha,
        "std": ranks.per_dimension_std(x).mean() * 40**0.5,
        "std_min": ranks.per_dimension_std(x).min() * 40**0.5,
        "uniformity": ranks.uniformity(x),
    }
    for name, value in exact.items():
        assert found[name].value == pytest.approx(float(value), rel=1e-5), name
        assert found[name].low < found[name].value < found[name].high, name
    looks = torch.randn(120, 1, 12, generator=generator) + torch.randn(120, 3, 12, generator=generator)
    pairs = measure_augmented(looks, LabelFreeConfig())
    assert pairs["lidar"].value == pytest.approx(float(ranks.lidar(looks).value), rel=1e-9)
    assert pairs["alignment"].value == pytest.approx(float(ranks.alignment(looks[:, 0], looks[:, 1])), rel=1e-5)


def test_intervals_cover_as_often_as_they_say() -> None:
    """The value over very many rows lies in the interval of a sample in about 95 of 100 samples."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1, 8)
    truth = measure(torch.randn(200_000, 8, generator=generator) * scales)["effective_rank"]
    config = LabelFreeConfig()
    inside = 0
    for _ in range(60):
        metric = measure_features(torch.randn(400, 8, generator=generator) * scales, config).metrics["effective_rank"]
        assert metric.low is not None and metric.high is not None
        inside += metric.low <= truth <= metric.high
    assert inside >= 51


def test_ranks_that_the_count_bounds_have_no_interval() -> None:
    found = measure_features(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), LabelFreeConfig())
    assert found.metrics["rankme"].low is None and "bounds every rank" in found.no_interval
    bad = measure_features(torch.full((200, 8), float("nan")), LabelFreeConfig())
    assert bad.metrics == {} and "not finite" in bad.left_out["rankme"]


def test_the_information_bound_of_known_cases() -> None:
    one_hot = torch.eye(64)
    for temperature in (0.1, 0.5):
        known = math.log(64) - math.log(1 + 63 * math.exp(-1 / temperature))
        for groups in (1, 4):
            assert infonce_bound(one_hot, one_hot, temperature, groups).value == pytest.approx(known, abs=1e-5)
    nothing = infonce_bound(torch.ones(50, 4), torch.ones(50, 4), 0.1)
    assert nothing.value == pytest.approx(0.0, abs=1e-5)  # every pair looks alike: no information
    shuffled = infonce_bound(one_hot, one_hot.roll(1, 0), 0.5, 4)
    assert shuffled.value < 0
    many = infonce_bound(torch.randn(256, 16), torch.randn(256, 16), 0.1, 20)
    assert many.low is not None and many.low < many.value < many.high <= math.log(256)
    with pytest.raises(ConfigError, match="temperature"):
        LabelFreeConfig(infonce_temperature=0.0)


def test_a_line_and_a_plane_are_told_apart_without_noise() -> None:
    """Eigenvalues that are rounding count as none."""
    line = torch.linspace(-1, 1, 300)[:, None] * torch.ones(1, 16)
    found = measure_features(line, LabelFreeConfig())
    assert found.metrics["effective_rank"].value == pytest.approx(1.0, abs=1e-6)
    assert "alpha_req" in found.left_out
