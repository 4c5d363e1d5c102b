"""Nearest neighbours in the embedding: for a few images, the ones the encoder holds to be most alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.core.rng import key, uniforms
from imprint.viz.raster import Picture, save_png, sheet, thumbnail

BLOCK = 65_536
"""Rows searched at a time."""


@dataclass(frozen=True)
class Neighbourhood:
    """One query and its neighbours, nearest first; all numbers are rows of the table.

    Attributes:
        query: row of the query.
        rows: rows of the neighbours.
        similarity: cosines, same order.
    """

    query: int
    rows: tuple[int, ...]
    similarity: tuple[float, ...]


def unit_rows(features_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the rows at length 1 (zero and non-finite rows become zero)."""
    clean = np.nan_to_num(np.asarray(features_ND, dtype=np.float32), posinf=0.0, neginf=0.0)
    norm = np.linalg.norm(clean, axis=1, keepdims=True)
    return np.asarray(clean / np.maximum(norm, 1e-12), dtype=np.float32)


def nearest_rows(features_ND: npt.NDArray[np.float32], queries: Sequence[int], k: int = 8) -> list[Neighbourhood]:
    """Return the `k` rows of largest cosine similarity for each query, the query itself left out.

    The table is read once, a block of rows at a time, so one of a million rows may stay on disk.
    """
    count, index = len(features_ND), np.asarray(queries, dtype=np.int64)
    k = min(k, count - 1)
    if k < 1 or not len(index):
        return []
    asked = unit_rows(features_ND[index])
    top = np.empty((len(index), 0), dtype=np.int64)
    values = np.empty((len(index), 0), dtype=np.float32)
    for start in range(0, count, BLOCK):
        cosine = asked @ unit_rows(features_ND[start : start + BLOCK]).T
        own = (index >= start) & (index < start + cosine.shape[1])
        cosine[own, index[own] - start] = -np.inf
        here = np.argpartition(-cosine, min(k, cosine.shape[1]) - 1, axis=1)[:, :k]
        top = np.concatenate([top, here + start], 1)
        values = np.concatenate([values, np.take_along_axis(cosine, here, 1)], 1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        top, values = np.take_along_axis(top, order, 1), np.take_along_axis(values, order, 1)
    return [
        Neighbourhood(int(q), tuple(map(int, rows)), tuple(float(v) for v in row))
        for q, rows, row in zip(index, top, values, strict=True)
    ]


def spread_queries(labels_N: npt.NDArray[np.int64] | None, count: int, rows: int) -> list[int]:
    """Return `count` rows to ask for: in turn a drawn one of every class, or evenly spread without labels."""
    if labels_N is None:
        return list(dict.fromkeys(int(i) for i in np.linspace(0, rows - 1, min(count, rows)).round()))
    draw = uniforms(key("neighbours", np.arange(len(labels_N))), 1)[:, 0]
    order = np.lexsort((draw, labels_N))
    labels = labels_N[order]
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    turn = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return [int(r) for r in order[np.lexsort((labels, turn))][:count]]


def neighbours_sheet(
    hoods: Sequence[Neighbourhood], images: Sequence[Picture] | Mapping[int, Picture], side: int = 72
) -> Picture:
    """Return a sheet: per row the query, then its neighbours."""
    return sheet([[thumbnail(images[r], side) for r in (hood.query, *hood.rows)] for hood in hoods])


def labelled_sheet(
    hoods: Sequence[Neighbourhood],
    images: Sequence[Picture] | Mapping[int, Picture],
    labels_N: npt.NDArray[np.int64] | None,
    side: int = 72,
) -> Picture:
    """Return the sheet; with labels a bar below each neighbour says same class (green) or another (red)."""
    if labels_N is None:
        return neighbours_sheet(hoods, images, side)
    rows = []
    for hood in hoods:
        cells = []
        for row in (hood.query, *hood.rows):
            colour = (255, 255, 255) if row == hood.query else (47, 158, 95)
            colour = colour if labels_N[row] == labels_N[hood.query] else (201, 72, 91)
            cells.append(np.concatenate([thumbnail(images[row], side), np.full((5, side, 3), colour, np.uint8)]))
        rows.append(cells)
    return sheet(rows)


def save_neighbours(hoods: Sequence[Neighbourhood], images: Sequence[Picture], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(neighbours_sheet(hoods, images), path)
