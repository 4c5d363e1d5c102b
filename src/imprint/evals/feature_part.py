"""A table of features that is being written: its rows, and how far it is.

Shapes: N images of the source, D width of the representation.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.backbones.stored import write_aside
from imprint.evals.feature_cache import PROGRESS

KEEP_SECONDS = 10.0


@dataclass
class Part:
    """Features of a source that are being written, and how far they are.

    Attributes:
        features: .npy file of float32 (N, D).
        rows: .npy file of int64 (N), position in the source of each row.
        progress: JSON file: `done` rows are there, and of the source the first `seen` samples are dealt with.
        kept: time of the last note of progress.
    """

    features: Path
    rows: Path
    progress: Path
    kept: float

    @classmethod
    def of(cls, folder: Path) -> Part:
        """Return the part in a folder of the cache."""
        progress = folder / PROGRESS
        return cls(folder / "features.npy", folder / "rows.npy", progress, kept=time.monotonic())

    def reopen(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int, int] | None:
        """Return (features, rows, done, seen) of a killed writer, or None for nothing that can be gone on with."""
        try:
            state = json.loads(self.progress.read_text(encoding="utf-8"))
            done, seen = int(state["done"]), int(state["seen"])
            table = np.load(self.features, mmap_mode="r+", allow_pickle=False)
            index = np.load(self.rows, mmap_mode="r+", allow_pickle=False)
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            return None
        fits = table.ndim == 2 and table.dtype == np.float32 and index.dtype == np.int64
        if not fits or len(table) != count or index.shape != (count,) or not 0 < done <= seen <= count:
            return None
        return table, index, done, seen

    def create(self, count: int, width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return empty tables in files."""
        self.progress.unlink(missing_ok=True)
        table = np.lib.format.open_memmap(self.features, mode="w+", dtype=np.float32, shape=(count, width))
        return table, np.lib.format.open_memmap(self.rows, mode="w+", dtype=np.int64, shape=(count,))

    def keep(self, table: npt.NDArray[np.float32], index: npt.NDArray[np.int64], done: int) -> None:
        """Note how far it is, every few seconds, after the rows themselves are on the disk."""
        if time.monotonic() - self.kept < KEEP_SECONDS:
            return
        for array in (table, index):
            if isinstance(array, np.memmap):
                array.flush()
        state = {"done": done, "seen": int(index[done - 1]) + 1}
        write_aside(self.progress, json.dumps(state).encode())
        self.kept = time.monotonic()
