"""A flat map of the embedding: principal components, and t-SNE or UMAP for neighbourhoods.

Shapes: N rows of the table, S of them laid out, M shown, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from imprint.core.errors import unknown
from imprint.data.sources import spread
from imprint.viz.colours import category, rgb
from imprint.viz.layouts import Plane, clusters_of, nearest_centre, placed, to_square, tsne, umap
from imprint.viz.lettering import line_of
from imprint.viz.neighbours import unit_rows
from imprint.viz.principal import blocks_of, principal_axes
from imprint.viz.raster import Picture, resized, save_png

LIMIT = 2000
COMPONENTS = 50
"""Principal components that t-SNE and UMAP see."""
LAYOUTS = ("t-SNE", "UMAP", "PCA")
FEWEST = 8
"""Points from which on there are neighbourhoods to lay out."""


@dataclass(frozen=True)
class EmbeddingMap:
    """Positions in the unit square and groups to colour by.

    Attributes:
        layouts: name (`t-SNE`, `UMAP`, `PCA`) -> (M, 2) in [0, 1].
        groups_N: group of each shown point: class labels, or clusters when there are none.
        names: group names.
        clustered: whether the groups are clusters.
        rows_M: which rows of the table are shown, ascending.
        laid_out_M: True where the layout itself placed the point, False where it lies among its nearest neighbours.
    """

    layouts: dict[str, Plane]
    groups_N: npt.NDArray[np.int64]
    names: tuple[str, ...]
    clustered: bool
    rows_M: npt.NDArray[np.int64]
    laid_out_M: npt.NDArray[np.bool_]


def embedding_map(
    features_ND: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
    *,
    seed: int = 0,
    clusters: int = 10,
    layouts: Sequence[str] = ("t-SNE", "PCA"),
    sample: int = LIMIT,
    rest: Literal["drop", "place"] = "drop",
) -> EmbeddingMap:
    """Lay out an embedding of any size: PCA exactly, t-SNE and UMAP on an even sample.

    Rows are brought to length 1 first, so points are compared by cosine. The principal axes are those of all rows (one
    streamed pass). Up to `sample` rows are all laid out; of more, every N/sample-th is, by its first 50 components, and
    the others are left out or placed among their 5 nearest laid-out points (weights 1 / squared distance), which shows
    densities but finds no structure that the sample lacks. t-SNE and UMAP need 8 points; fewer give PCA alone. Without
    labels points are coloured by the k-means clusters of the sample.

    Args:
        features_ND: the table, in memory or mapped.
        labels_N: classes, or None.
        classes: their names.
        seed: of layouts and clusters; the same seed and features give the same map.
        clusters: how many, without labels.
        layouts: names, see `LAYOUTS`.
        sample: S.
        rest: what happens to the rows that are not in the sample.

    Raises:
        ValueError: for no rows.
        ConfigError: for an unknown layout.
        MissingExtra: for UMAP without umap-learn.
    """
    if not len(features_ND):
        raise ValueError("a map needs at least one point")
    for name in layouts:
        if name not in LAYOUTS:
            raise unknown("layout", name, LAYOUTS)
    chosen = spread(len(features_ND), sample)
    unit_SD = unit_rows(features_ND[chosen])
    axes = principal_axes((unit_rows(block) for block in blocks_of(features_ND)), COMPONENTS)
    scores_SC = axes.project(unit_SD)
    shown = chosen if rest == "drop" else np.arange(len(features_ND))
    others = shown if len(shown) > len(chosen) else None
    scores_MC = scores_SC
    if others is not None:
        scores_MC = np.concatenate([axes.project(unit_rows(block)) for block in blocks_of(features_ND)])
    found: dict[str, Plane] = {}
    for name in layouts:
        if name == "PCA":
            found[name] = to_square(_two(scores_MC))
        elif len(chosen) >= FEWEST and axes.variance_C[0] > 1e-12:
            plane = (tsne if name == "t-SNE" else umap)(scores_SC, seed)
            if others is not None:
                plane = placed(scores_MC, scores_SC, plane, chosen)
            found[name] = to_square(plane)
    found = found or {"PCA": to_square(_two(scores_MC))}
    laid_out = np.isin(shown, chosen)
    if labels_N is not None:
        groups = np.asarray(labels_N, dtype=np.int64)[shown]
        names = tuple(classes) or tuple(str(i) for i in range(int(groups.max()) + 1))
        return EmbeddingMap(found, groups, names, False, shown, laid_out)
    own, centres = clusters_of(scores_SC, min(clusters, len(chosen)), seed)
    groups = own if others is None else nearest_centre(scores_MC, centres)
    names = tuple(f"cluster {i + 1}" for i in range(int(groups.max()) + 1))
    return EmbeddingMap(found, groups, names, True, shown, laid_out)


def draw_map(chart: EmbeddingMap, layout: str | None = None, size: int = 900, *, legend: bool = False) -> Picture:
    """Return one layout (the first by default) as a picture on white, points coloured by group.

    Points lie on each other in a shuffled order, so that no class hides the others; they are smaller when there are
    many. With `legend`, names of up to 24 groups stand at the right.
    """
    points = chart.layouts[layout or next(iter(chart.layouts))]
    count = len(points)
    radius = 4.5 if count <= 500 else max(1.0, 4.5 * (500 / count) ** 0.3)
    fine, reach = 2, int(np.ceil(2 * radius))
    palette = np.array([rgb(category(i)) for i in range(int(chart.groups_N.max()) + 1)], dtype=np.uint8)
    order = np.random.default_rng(0).permutation(count)
    margin = 20 * fine
    xy = points[order] * (size * fine - 2 * margin) + margin
    column = np.rint(xy[:, 0]).astype(np.int64)
    row = np.rint(size * fine - xy[:, 1]).astype(np.int64)
    colours = palette[chart.groups_N[order]]
    # Who is on top is settled per pixel first, then painted once: the last of the shuffled order wins everywhere.
    top = np.full(size * fine * size * fine, -1, dtype=np.int32)
    rank = np.arange(count, dtype=np.int32)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy <= (fine * radius) ** 2 + 0.5:
                np.maximum.at(top, (row + dy) * size * fine + column + dx, rank)
    canvas = np.full((size * fine * size * fine, 3), 255, np.uint8)
    canvas[top >= 0] = colours[top[top >= 0]]
    drawn = resized(canvas.reshape(size * fine, size * fine, 3), size, size)
    return _with_legend(drawn, chart) if legend else drawn


def save_map(chart: EmbeddingMap, path: str | Path, layout: str | None = None) -> Path:
    """Write one layout as a PNG file."""
    return save_png(draw_map(chart, layout), path)


def _with_legend(drawn: Picture, chart: EmbeddingMap, most: int = 24) -> Picture:
    sizes = np.bincount(chart.groups_N)
    present = np.flatnonzero(sizes)
    strip = np.full((drawn.shape[0], 220, 3), 255, np.uint8)
    for index, group in enumerate(present[:most]):
        y = 24 + 24 * index
        if y + 20 > strip.shape[0]:
            break
        cv2.circle(strip, (12, y + 9), 6, rgb(category(int(group))), -1, cv2.LINE_AA)
        name = chart.names[group] if group < len(chart.names) else str(group)
        words = (
            f"{name} ({sizes[group]:,})"
            if index < most - 1 or len(present) <= most
            else f"and {len(present) - index} more"
        )
        text = line_of(words, 190)
        strip[y : y + text.shape[0], 26 : 26 + text.shape[1]] = text
    return np.concatenate([drawn, strip], 1)


def _two(scores: npt.NDArray[np.float32]) -> Plane:
    plane = scores[:, :2] if scores.shape[1] > 1 else np.c_[scores[:, :1], np.zeros(len(scores))]
    return np.asarray(plane, dtype=np.float64)
