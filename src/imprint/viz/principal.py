"""Principal components of tables that need not fit in memory: one pass over blocks of rows.

Shapes: n rows of a block, D width, C components.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROWS = 8192


@dataclass(frozen=True)
class Axes:
    """Principal axes, largest variance first.

    Attributes:
        mean_D: mean of the rows, float64.
        axes_DC: unit axes, float64.
        variance_C: variance along them, float64, >= 0.
    """

    mean_D: npt.NDArray[np.float64]
    axes_DC: npt.NDArray[np.float64]
    variance_C: npt.NDArray[np.float64]

    def project(self, rows_nD: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return the scores of rows, float32 (n, C); those along axes without variance are zero."""
        shift = self.mean_D @ self.axes_DC
        scores = rows_nD.astype(np.float32, copy=False) @ self.axes_DC.astype(np.float32) - shift.astype(np.float32)
        top = max(float(self.variance_C.max(initial=0.0)), 1e-30)
        scores[:, self.variance_C <= 1e-9 * top] = 0.0
        return np.asarray(scores, dtype=np.float32)


def principal_axes(blocks: Iterable[npt.NDArray[np.floating]], count: int) -> Axes:
    """Return the first `count` principal axes of all rows (at most D), from one pass.

    The covariance is summed up in float64 around the first block's mean, which keeps features far from zero exact.

    Raises:
        ValueError: when there are no rows.
    """
    shift: npt.NDArray[np.float64] | None = None
    seen = 0
    for block in blocks:
        if not len(block):
            continue
        rows = np.nan_to_num(np.asarray(block, dtype=np.float64), posinf=0.0, neginf=0.0)
        if shift is None:
            shift = rows.mean(0)
            total, outer = np.zeros_like(shift), np.zeros((len(shift), len(shift)))
        rows = rows - shift
        total += rows.sum(0)
        outer += rows.T @ rows
        seen += len(rows)
    if shift is None:
        raise ValueError("principal components of no rows")
    offset = total / seen
    covariance = outer / seen - np.outer(offset, offset)
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1][:count]
    return Axes(shift + offset, vectors[:, order], np.maximum(values[order], 0.0))


def blocks_of(table_ND: npt.NDArray[np.floating], rows: int = ROWS) -> Iterator[npt.NDArray[np.floating]]:
    """Yield a table (a memory map, perhaps) a few thousand rows at a time."""
    for start in range(0, len(table_ND), rows):
        yield table_ND[start : start + rows]
