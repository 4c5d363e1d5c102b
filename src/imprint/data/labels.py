"""Class labels from what comes with images: ints, names, or the folders they lie in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError
from imprint.data.sources import Labels

SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "unlabeled"))
"""First-level folders of these names are splits, not classes."""


def as_numpy(images: Any) -> npt.NDArray[Any]:
    """Return the numpy view of an array or a tensor."""
    if hasattr(images, "detach"):
        images = images.detach().cpu().numpy()
    return images if isinstance(images, np.ndarray) else np.asarray(images)


def read_labels(
    labels: npt.ArrayLike | None, size: int, where: str, classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], Labels | None]:
    """Turn ints or names into (classes, int64 labels); names are numbered in sorted order, '0', '1', ... are ints.

    Raises:
        DataError: when there are not `size` of them, or an int has no class.
    """
    if labels is None:
        return (), None
    values = as_numpy(labels).reshape(-1)
    if values.size != size:
        raise DataError(f"{where}: {values.size} labels for {size} images.")
    if np.issubdtype(values.dtype, np.integer):
        numbers = values.astype(np.int64)
        if numbers.size and numbers.min() < 0:
            raise DataError(f"{where}: labels must not be negative, found {int(numbers.min())}.")
        count = int(numbers.max()) + 1 if numbers.size else 0
        names = tuple(classes) or tuple(str(k) for k in range(count))
        if len(names) < count:
            raise DataError(f"{where}: label {count - 1} has no name; {len(names)} classes were given.")
        return names, numbers
    if values.dtype.kind not in "USO":
        raise DataError(f"{where}: labels are {values.dtype}; give ints or names.")
    words, numbers = np.unique(values.astype(str), return_inverse=True)
    if not classes and words.size and all(word.isdecimal() for word in words.tolist()):
        return read_labels(words.astype(np.int64)[numbers], size, where)
    return tuple(words.tolist()), numbers.astype(np.int64).reshape(-1)


def labels_of_dirs(dirs: Sequence[bytes], counts: npt.NDArray[np.int64]) -> tuple[tuple[str, ...], Labels | None]:
    """Return classes and labels of files grouped by directory (relative path, number of files), or no labels."""
    tops = [name.partition(b"/")[0] for name in dirs]
    full = np.asarray(counts) > 0
    used = sorted({top for top, any_file in zip(tops, full, strict=True) if any_file})
    total = int(np.sum(counts))
    if len(used) < 2 or b"" in used or total < 2 * len(used):
        return (), None
    if all(top.lower().decode("utf-8", "replace") in SPLIT_NAMES for top in used):
        return (), None
    position = {top: k for k, top in enumerate(used)}
    of_dir = np.array([position.get(top, -1) for top in tops], dtype=np.int64)
    return tuple(os.fsdecode(top) for top in used), np.repeat(of_dir, counts)


def labels_of_members(names: Sequence[bytes]) -> tuple[tuple[str, ...], Labels | None]:
    """Return classes and labels of archive members by their folders, below a folder that all of them share."""
    parts = [name.split(b"/")[:-1] for name in names]
    shared = len(os.path.commonprefix(parts)) if parts else 0
    tops = [part[shared] if len(part) > shared else b"" for part in parts]
    dirs, inverse, counts = np.unique(np.array(tops, dtype=object), return_inverse=True, return_counts=True)
    classes, labels = labels_of_dirs(dirs.tolist(), counts)
    return classes, None if labels is None else inverse.astype(np.int64).reshape(-1)
