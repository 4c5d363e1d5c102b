"""A flat map of the embedding: principal components, and t-SNE for neighbourhoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from imprint.viz.colours import category, rgb
from imprint.viz.neighbours import unit_rows
from imprint.viz.raster import Picture, save_png

LIMIT = 2000
Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EmbeddingMap:
    """Positions in the unit square and groups to colour by.

    Attributes:
        layouts: name (`t-SNE`, `PCA`) -> (N, 2) in [0, 1].
        groups_N: group of each point: class labels, or clusters when there are none.
        names: group names.
        clustered: whether the groups are clusters.
    """

    layouts: dict[str, Plane]
    groups_N: npt.NDArray[np.int64]
    names: tuple[str, ...]
    clustered: bool


def embedding_map(
    features_ND: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
    *,
    seed: int = 0,
    clusters: int = 10,
) -> EmbeddingMap:
    """Lay out at most 2,000 points: PCA always, t-SNE (on the first 50 principal components) from 8 points on.

    Features are compared by cosine: rows are brought to length 1 first. Without labels, points are coloured by k-means.

    Raises:
        ValueError: for more than 2,000 points or none.
    """
    if not 0 < len(features_ND) <= LIMIT:
        raise ValueError(f"a map shows 1 to {LIMIT} points, got {len(features_ND)}")
    unit = unit_rows(features_ND)
    centred = unit - unit.mean(0, keepdims=True)
    u, s, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    scores = u * s
    plane = scores[:, :2] if scores.shape[1] > 1 else np.c_[scores[:, :1], np.zeros(len(scores))]
    layouts = {"PCA": _to_square(plane)}
    if len(unit) >= 8 and s[0] > 1e-9:
        layouts = {"t-SNE": _to_square(_tsne(scores[:, :50], seed)), **layouts}
    if labels_N is not None:
        groups = np.asarray(labels_N, dtype=np.int64)
        names = tuple(classes) or tuple(str(i) for i in range(int(groups.max()) + 1))
        return EmbeddingMap(layouts, groups, names, clustered=False)
    groups = _clusters(unit, min(clusters, len(unit)), seed)
    names = tuple(f"cluster {i + 1}" for i in range(int(groups.max()) + 1))
    return EmbeddingMap(layouts, groups, names, clustered=True)


def draw_map(chart: EmbeddingMap, layout: str | None = None, size: int = 900) -> Picture:
    """Return one layout (the first by default) as a picture on white, points coloured by group."""
    canvas = np.full((size, size, 3), 255, np.uint8)
    points = chart.layouts[layout or next(iter(chart.layouts))]
    for (x, y), group in zip(points, chart.groups_N, strict=True):
        place = (round(20 + x * (size - 40)), round(20 + (1 - y) * (size - 40)))
        cv2.circle(canvas, place, 4, rgb(category(int(group))), -1, cv2.LINE_AA)
    return canvas


def save_map(chart: EmbeddingMap, path: str | Path, layout: str | None = None) -> Path:
    """Write one layout as a PNG file."""
    return save_png(draw_map(chart, layout), path)


def _tsne(scores: npt.NDArray[np.float64], seed: int) -> Plane:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(scores) - 1) / 3)
    # Started from PCA and seeded, so the same features give the same map.
    model = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed, n_jobs=1)
    start = scores if scores.shape[1] > 1 else np.c_[scores, np.zeros(len(scores))]
    return np.asarray(model.fit_transform(start), dtype=np.float64)


def _clusters(unit: npt.NDArray[np.float32], count: int, seed: int) -> npt.NDArray[np.int64]:
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters (a collapsed encoder)
        found = KMeans(count, n_init=1, random_state=seed).fit_predict(unit)
    return np.asarray(found, dtype=np.int64)


def _to_square(points: Plane) -> Plane:
    low, high = points.min(0), points.max(0)
    span = float((high - low).max()) or 1.0
    return np.asarray(0.5 + (points - (low + high) / 2) / span, dtype=np.float64)
