"""Neighbours and the map."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.core.errors import ConfigError, MissingExtra
from imprint.viz import neighbours
from imprint.viz.colours import category, rgb
from imprint.viz.embedding_map import EmbeddingMap, draw_map, embedding_map, save_map
from imprint.viz.layouts import placed
from imprint.viz.neighbours import nearest_rows, save_neighbours, spread_queries, unit_rows
from imprint.viz.principal import principal_axes


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
    with pytest.raises(ValueError, match="at least one"):
        embedding_map(np.zeros((0, 2), np.float32))


def test_components_of_blocks_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(500, 6)) * np.array([5, 3, 2, 1, 0.5, 0.1]) + 100).astype(np.float32)
    axes = principal_axes((table[i : i + 37] for i in range(0, 500, 37)), 4)
    centred = table.astype(np.float64) - table.mean(0, dtype=np.float64)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs((axes.axes_DC * vectors[:4].T).sum(0)), 1, atol=1e-5)
    np.testing.assert_allclose(axes.variance_C, values[:4] ** 2 / 500, rtol=1e-4)
    np.testing.assert_allclose(np.abs(axes.project(table)), np.abs(centred @ vectors[:4].T), atol=2e-3)


def test_large_map_lays_out_an_even_sample_and_places_the_rest() -> None:
    features, labels = groups(per=200)
    dropped = embedding_map(features, labels, sample=60)
    assert dropped.rows_M.tolist() == list(range(0, 600, 10)) and dropped.laid_out_M.all()
    assert len(dropped.groups_N) == 60
    whole = embedding_map(features, labels, sample=60, rest="place")
    assert whole.laid_out_M.sum() == 60 and len(whole.groups_N) == 600
    for points in whole.layouts.values():
        centres = np.stack([points[labels == g].mean(0) for g in range(3)])
        nearest = np.argmin(((points[:, None] - centres) ** 2).sum(2), axis=1)
        assert (nearest == labels).mean() > 0.95
    exact = embedding_map(features, labels, layouts=("PCA",)).layouts["PCA"]
    np.testing.assert_allclose(whole.layouts["PCA"], exact, atol=1e-5)  # PCA needs no sample
    unlabelled = embedding_map(features, clusters=3, sample=60, rest="place")
    for g in range(3):
        assert np.bincount(unlabelled.groups_N[labels == g]).max() == 200


def test_placed_points_lie_where_a_naive_search_puts_them() -> None:
    rng = np.random.default_rng(0)
    scores, plane = rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(12, 2))
    sample = np.arange(12)
    found = placed(scores, scores[:12], plane, sample)
    for row in range(40):
        square = ((scores[row].astype(np.float64) - scores[:12]) ** 2).sum(1)
        near = np.argsort(square)[:5]
        weight = 1 / np.maximum(square[near], 1e-9)
        wanted = plane[row] if row < 12 else (plane[near] * weight[:, None]).sum(0) / weight.sum()
        np.testing.assert_allclose(found[row], wanted, rtol=1e-3, atol=1e-4)


def test_umap_is_asked_for_by_its_extra_and_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        with pytest.raises(MissingExtra, match=r"imprint\[maps\]"):
            embedding_map(np.eye(12, dtype=np.float32), layouts=("UMAP",))
    with pytest.raises(ConfigError, match="t-SNE"):
        embedding_map(np.eye(12, dtype=np.float32), layouts=("tsne",))
    features, labels = groups()
    given: dict[str, object] = {}

    class Flat:
        """What UMAP is asked for, without the minute that compiling it takes."""

        def __init__(self, **options: object) -> None:
            given.update(options)

        def fit_transform(self, scores: np.ndarray) -> np.ndarray:
            given["shape"] = scores.shape
            return scores[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Flat))  # type: ignore[arg-type]
    chart = embedding_map(features, labels, layouts=("UMAP", "PCA"), seed=7)
    np.testing.assert_allclose(chart.layouts["UMAP"], chart.layouts["PCA"], atol=1e-6)
    assert (given["random_state"], given["n_neighbors"], given["shape"]) == (7, 15, (90, 8))


def test_drawn_points_stand_where_they_lie_in_the_colours_of_their_groups() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0]])
    chart = EmbeddingMap({"PCA": points}, np.array([0, 1]), ("a", "<b>"), False, np.arange(2), np.ones(2, bool))
    drawn = draw_map(chart, size=200)
    assert tuple(drawn[180, 20]) == rgb(category(0)) and tuple(drawn[20, 180]) == rgb(category(1))
    assert (drawn[100, 100] == 255).all() and drawn.shape == (200, 200, 3)
    assert draw_map(chart, size=200, legend=True).shape == (200, 420, 3)


def test_neighbours_of_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(103, 5)).astype(np.float32)
    whole = nearest_rows(features, [0, 50, 102], k=7)
    monkeypatch.setattr(neighbours, "BLOCK", 10)
    for one, other in zip(whole, nearest_rows(features, [0, 50, 102], k=7), strict=True):
        assert one.rows == other.rows
        np.testing.assert_allclose(one.similarity, other.similarity, rtol=1e-5)


def test_sheet_file(tmp_path: Path) -> None:
    features, _ = groups(5)
    images = [np.full((10, 10, 3), i, np.uint8) for i in range(15)]
    path = save_neighbours(nearest_rows(features, [0, 6], k=3), images, tmp_path / "n.png")
    assert cv2.imread(str(path)).shape == (2 * 72 + 4, 4 * 72 + 12, 3)
