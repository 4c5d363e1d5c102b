"""A folder of images, with or without a subfolder per class."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from imprint.core.errors import DataError
from imprint.data.compact import Names
from imprint.data.index import Tree, indexed
from imprint.data.sources import Labels, Sample, Source, digest, spread

SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "unlabeled"))
"""First-level folders of these names are splits, not classes."""


class FolderSource(Source):
    """Every image below a folder, in the order of `imprint.data.index`.

    Labels are the first-level subfolders, in byte order, when the folder looks like a classification set: every image
    lies in a subfolder, there are at least two of them, they hold two images or more on average, and they are not all
    names of splits (`train`, `val`, ...). Anything else is an unlabelled folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, cache: bool = True) -> None:
        self.root = Path(root).expanduser()
        self.spec = os.fspath(root)
        self.tree: Tree = indexed(self.root, cache=cache)
        self._top = os.fsencode(self.root.resolve()) + b"/"
        self.classes, self.labels = labels_of_dirs(self.tree.dirs, np.diff(self.tree.starts))
        if len(self.tree) == 0:
            raise DataError(
                f"the folder '{self.root}' holds no images. Looked for files such as .jpg, .png, .tif, .webp and .npy "
                "in it and in all its subfolders."
            )

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.tree)

    def read(self, i: int) -> Sample:
        """Return the bytes of file `i`."""
        with open(self._top + self.tree.path(i), "rb", buffering=0) as file:
            return file.read()

    def name(self, i: int) -> str:
        """Return its path below the folder."""
        return os.fsdecode(self.tree.path(i))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over all relative paths, and over size and modification time of up to 1,024 files spread evenly.

        Moving the folder keeps it; adding, removing or renaming files changes it, and so does rewriting files in place
        as far as the sampled ones are among them.
        """
        picked = spread(len(self.tree), 1024)
        facts = np.zeros((picked.size, 2), dtype=np.int64)
        for row, i in enumerate(picked):
            try:
                stat = os.stat(self._top + self.tree.path(int(i)))
            except OSError:  # a dangling link stays (0, 0) until it works
                continue
            facts[row] = stat.st_size, stat.st_mtime_ns
        tree = self.tree
        return digest(tree.names.blob, tree.names.offsets, tree.dirs.blob, tree.dirs.offsets, tree.starts, facts)


def labels_of_dirs(
    dirs: Names, counts: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> tuple[tuple[str, ...], Labels | None]:
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
