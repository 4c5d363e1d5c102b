"""Neighbours and the map."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.viz.embedding_map import draw_map, embedding_map, save_map
from imprint.viz.neighbours import nearest_rows, save_neighbours, spread_queries, unit_rows


def groups(per: int = 30, width: int = 8, apart: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, width)) * apart
    labels = np.repeat(np.arange(3), per)
    return (centres[labels] + rng.normal(size=(3 * per, width))).astype(np.float32), labels


def test_neighbours_equal_a_full_sort() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 5)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for hood in nearest_rows(features, [0, 7, 49], k=6):
        cosine = unit @ unit[hood.query]
        cosine[hood.query] = -9
        assert list(hood.rows) == np.argsort(-cosine)[:6].tolist()
        np.testing.assert_allclose(hood.similarity, np.sort(cosine)[::-1][:6], rtol=1e-5)
    assert nearest_rows(features[:1], [0]) == []
    assert len(nearest_rows(features[:3], [0], k=10)[0].rows) == 2


def test_queries_take_turns_over_classes() -> None:
    labels = np.array([0] * 50 + [1] * 5 + [2] * 2)
    picked = spread_queries(labels, 6, len(labels))
    assert sorted(labels[picked[:3]]) == [0, 1, 2] and sorted(labels[picked[3:]]) == [0, 1, 2]
    assert len(set(picked)) == 6 and picked == spread_queries(labels, 6, len(labels))
    assert spread_queries(None, 3, 9) == [0, 4, 8] and spread_queries(None, 10, 2) == [0, 1]


def test_bad_rows_become_zero() -> None:
    out = unit_rows(np.array([[np.nan, 1.0], [0, 0], [np.inf, 3.0]], np.float32))
    assert np.isfinite(out).all() and out[1].tolist() == [0, 0]


def test_map_keeps_groups_apart_and_is_repeatable(tmp_path: Path) -> None:
    features, labels = groups()
    chart = embedding_map(features, labels, ("a", "b", "c"))
    assert list(chart.layouts) == ["t-SNE", "PCA"] and not chart.clustered
    for points in chart.layouts.values():
        assert points.shape == (90, 2) and points.min() >= 0 and points.max() <= 1
        centres = np.stack([points[labels == g].mean(0) for g in range(3)])
        nearest = np.argmin(((points[:, None] - centres) ** 2).sum(2), axis=1)
        assert (nearest == labels).mean() > 0.95
    again = embedding_map(features, labels, ("a", "b", "c"))
    assert all(np.array_equal(chart.layouts[n], again.layouts[n]) for n in chart.layouts)
    assert cv2.imread(str(save_map(chart, tmp_path / "m.png", "PCA"))).shape == (900, 900, 3)
    assert (draw_map(chart) < 250).any()


def test_map_without_labels_finds_clusters() -> None:
    features, labels = groups()
    chart = embedding_map(features, clusters=3)
    assert chart.clustered and len(chart.names) == 3
    for g in range(3):
        assert np.bincount(chart.groups_N[labels == g]).max() == 30


@pytest.mark.parametrize(
    "features", [np.ones((40, 4)), np.zeros((5, 3)), np.ones((1, 4)), np.arange(20.0).reshape(20, 1)]
)
def test_map_of_collapsed_or_few_features(features: np.ndarray) -> None:
    chart = embedding_map(features.astype(np.float32))
    for points in chart.layouts.values():
        assert np.isfinite(points).all()
    with pytest.raises(ValueError, match="2000"):
        embedding_map(np.zeros((2001, 2), np.float32))


def test_sheet_file(tmp_path: Path) -> None:
    features, _ = groups(5)
    images = [np.full((10, 10, 3), i, np.uint8) for i in range(15)]
    path = save_neighbours(nearest_rows(features, [0, 6], k=3), images, tmp_path / "n.png")
    assert cv2.imread(str(path)).shape == (2 * 72 + 4, 4 * 72 + 12, 3)
