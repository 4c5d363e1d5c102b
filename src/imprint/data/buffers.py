"""Batch memory that is used again once nothing refers to it.

A fresh batch of 256 pairs of 224-pixel crops is 77 MB of pages that the kernel must clear at every step. Here a block
goes back to the pool when the last tensor over it dies, and not before: the tensor's storage owns a numpy view, and a
finaliser on that view returns the block, so a batch that somebody kept is never written over.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt


class BufferPool:
    """Blocks of memory by size.

    Args:
        keep: how many idle blocks of each size stay allocated.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._idle: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._lock = threading.RLock()  # the collector may run a finaliser while this thread holds the lock

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an uninitialised array; its memory returns to the pool when the array is garbage."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        with self._lock:
            idle = self._idle.setdefault(size, [])
            block = idle.pop() if idle else np.empty(size, dtype=np.uint8)
        view = block.view(kind).reshape(shape)
        weakref.finalize(view, self._give_back, block).atexit = False
        return view

    def _give_back(self, block: npt.NDArray[np.uint8]) -> None:
        with self._lock:
            idle = self._idle.setdefault(block.size, [])
            if len(idle) < self._keep:
                idle.append(block)

    def idle(self) -> int:
        """Return how many blocks wait to be used again."""
        with self._lock:
            return sum(len(blocks) for blocks in self._idle.values())
