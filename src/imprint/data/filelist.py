"""A list of image files: `.txt` (one path per line, label after a tab) or `.csv` (columns path and label)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from imprint.core.errors import DataError
from imprint.data.compact import Names
from imprint.data.labels import read_labels
from imprint.data.sources import Sample, Source, digest, spread


class ListSource(Source):
    """Files named by a list, in its order; relative paths count from `base`. Nothing is checked until it is read."""

    def __init__(self, paths: Names, labels: list[str] | None, *, base: Path, spec: str) -> None:
        self.spec, self.paths = spec, paths
        self.base = base
        self._base = os.fsencode(base)
        self.classes, self.labels = read_labels(labels, len(paths), spec)

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self.paths)

    def _path(self, i: int) -> bytes:
        return os.path.join(self._base, self.paths[i])

    def read(self, i: int) -> Sample:
        """Return the bytes of file `i`."""
        with open(self._path(i), "rb", buffering=0) as file:
            return file.read()

    def name(self, i: int) -> str:
        """Return the path as the list has it."""
        return os.fsdecode(self.paths[i])

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the paths, and over size and modification time of up to 1,024 files spread evenly."""
        picked = spread(len(self), 1024)
        facts = np.zeros((picked.size, 2), dtype=np.int64)
        for row, i in enumerate(picked):
            try:
                stat = os.stat(self._path(int(i)))
            except OSError:
                continue
            facts[row] = stat.st_size, stat.st_mtime_ns
        return digest(self.paths.blob, self.paths.offsets, facts)


def open_list(path: Path) -> ListSource:
    """Open a file list.

    Labels are class names, or ints when all of them are; either every line has one, or none has.

    Raises:
        DataError: when the list cannot be read, is empty, or has labels on some lines only.
    """
    try:
        rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _text_rows(path))
    except OSError as error:
        raise DataError(f"the list '{path}' cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the list '{path}' is not UTF-8 text: {error}.") from error
    if not rows:
        raise DataError(f"the list '{path}' names no files.")
    bare = [line for line, _, label in rows if label is None]
    if 0 < len(bare) < len(rows):
        raise DataError(
            f"the list '{path}' has labels on {len(rows) - len(bare)} of {len(rows)} lines, not on {bare[0]}."
        )
    labels = None if bare else [label for _, _, label in rows if label is not None]
    names = Names.of(os.fsencode(name) for _, name, _ in rows)
    return ListSource(names, labels, base=path.parent.resolve(), spec=os.fspath(path))


def _text_rows(path: Path) -> Iterator[tuple[int, str, str | None]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            name, tab, label = line.rstrip("\r\n").partition("\t")
            if name.strip() and not name.startswith("#"):
                yield number, name, label.strip() or None if tab else None


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str | None]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "path" not in columns:
            raise DataError(
                f"the list '{path}' has the columns {list(columns)}; name them 'path' and, if any, 'label'."
            )
        for row in reader:
            if row["path"]:
                yield reader.line_num, row["path"], row.get("label") or None
