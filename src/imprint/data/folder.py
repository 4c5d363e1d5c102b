"""A folder of images, with or without a subfolder per class."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from imprint.core.errors import DataError
from imprint.data.index import Tree, indexed
from imprint.data.labels import labels_of_dirs
from imprint.data.sources import Sample, Source, digest, spread

_SHARDS = ("*.tar", "*.zip", "*.parquet")


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
            raise self._nothing()

    def _nothing(self) -> DataError:
        shards = next((f"'{self.root / pattern}'" for pattern in _SHARDS if any(self.root.glob(pattern))), None)
        hint = f" It has shards, though: give them as {shards}." if shards else ""
        return DataError(
            f"the folder '{self.root}' holds no images. Looked for files such as .jpg, .png, .tif, .webp and .npy in "
            f"it and in all its subfolders.{hint}"
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
