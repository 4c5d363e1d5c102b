"""Intervals: the t interval and the bootstrap against plain computations, shares by class."""

import numpy as np
import pytest

from imprint.evals.intervals import bootstrap, class_shares, mean_of


def test_mean_of_three_draws_uses_students_t():
    found = mean_of([70.0, 72.0, 77.0])
    half = 4.302652729911275 * np.std([70.0, 72.0, 77.0], ddof=1) / np.sqrt(3)
    assert found.value == 73.0 and found.n == 3
    assert (found.low, found.high) == pytest.approx((73 - half, 73 + half))


def test_mean_of_many_is_the_normal_interval():
    values = np.random.default_rng(0).normal(50, 10, 5000)
    found = mean_of(values)
    assert found.high - found.value == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(5000), rel=1e-3)
    assert mean_of([3.0]).low is None
    with pytest.raises(ValueError, match="nothing"):
        mean_of([])


def test_bootstrap_of_a_mean_agrees_with_a_loop_and_with_theory():
    values = np.random.default_rng(1).normal(20, 5, 80)
    found = bootstrap(values, resamples=4000)
    rng = np.random.default_rng(2)
    loop = np.quantile([rng.choice(values, 80).mean() for _ in range(4000)], (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx(tuple(loop), abs=0.15)
    assert found.value == pytest.approx(values.mean()) and found.n == 80
    assert bootstrap(values, resamples=4000) == found and bootstrap(values, seed=1, resamples=4000) != found


def test_bootstrap_of_a_statistic_of_sums():
    rng = np.random.default_rng(3)
    items = rng.integers(1, 50, (30, 2)).astype(float)  # hits and counts of 30 images
    found = bootstrap(items, lambda sums: sums[:, 0] / sums[:, 1])
    assert found.value == pytest.approx(items[:, 0].sum() / items[:, 1].sum())
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match="statistic"):
        bootstrap(items)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    values = np.arange(50.0)
    whole = bootstrap(values)
    monkeypatch.setattr("imprint.evals.intervals._CHUNK", 50 * 7)
    assert bootstrap(values) == whole


def test_shares_by_class_name_only_those_that_occur():
    labels = np.array([0, 0, 2, 2, 2])
    assert class_shares([1, 0, 1, 1, 1], labels, ("a", "b", "c")) == {"a": 50.0, "c": 100.0}
    assert class_shares([1, 0, 1, 1, 1], labels, ()) == {"0": 50.0, "2": 100.0}
