"""Metrics to charts."""

from __future__ import annotations

import math
from pathlib import Path

import cv2

from imprint.viz.curves import curves, save_curves, series

METRICS = [
    {"step": 20, "epoch": 1, "time": 2.0, "loss": 1.0, "data_wait": 0.5, "dino/entropy": 3.0},
    {"step": 10, "epoch": 0.5, "time": 1.0, "loss": None, "lr": 0.1, "data_wait": 0.25, "dino/entropy": 4.0},
    {"step": 20, "probe/knn_top1": 50.0, "probe/linear_top1": 60.0, "rank/rankme": 12.0},
]


def test_charts_in_order_of_interest() -> None:
    titles = [chart.title for chart in curves(METRICS)]
    assert titles[:3] == ["Loss", "Online probes", "rankme (rank)"] and titles[-1] == "entropy (dino)"
    assert "Learning rate" in titles and "Weight decay" not in titles
    probes = curves(METRICS)[1]
    assert [line.name for line in probes.series] == ["knn_top1", "linear_top1"] and probes.dots


def test_steps_are_sorted_nulls_are_gaps_shares_are_percent() -> None:
    loss = series(METRICS, "loss")
    assert loss.x == (10, 20) and math.isnan(loss.y[0]) and loss.y[1] == 1.0
    wait = next(c for c in curves(METRICS) if "waiting" in c.title)
    assert wait.series[0].y == (25.0, 50.0) and wait.unit == " %"


def test_no_metrics_no_charts() -> None:
    assert curves([]) == []


def test_files(tmp_path: Path) -> None:
    paths = save_curves(METRICS, tmp_path)
    assert len(paths) == len(curves(METRICS)) == len(set(paths))
    assert all(cv2.imread(str(p)) is not None for p in paths)
