"""One shard of a stream: opened when it is reached, and read in file order in large pieces."""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imprint.core.errors import BadImage, DataError
from imprint.data.parquet import image_column
from imprint.data.shard_index import PLAIN, ShardIndex, scanned
from imprint.data.shards import ZIP_HEADER, read_member, whole
from imprint.data.sources import digest

Found = bytes | BadImage
"""The bytes of a sample, or why there are none."""

PIECE = 8 << 20
"""Most bytes that one read joins."""
GAP = 1 << 18
"""Bytes between two wanted samples that are read along rather than skipped: a new read costs more."""
HEADERS, THROUGH = 4 << 10, 1 << 20
"""Bytes per read while headers are looked for: little, or the whole file in passing."""


class Shard(ABC):
    """The samples of one file, in the order they have inside."""

    path: Path

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def name(self, j: int) -> str:
        """Return what a person finds sample `j` by."""

    @abstractmethod
    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Found]]:
        """Yield (j, sample) for ascending positions, joining neighbours into few large reads."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Digest over what the shard holds (not over when it was written: a copy is the same shard)."""


def open_shard(path: Path, *, through: bool) -> Shard:
    """Open a tar, zip or parquet file.

    Args:
        path: the file.
        through: this process will read all of it, so headers are looked for in large reads.

    Raises:
        DataError: when it cannot be read as what its name says.
    """
    return ParquetShard(path) if path.suffix.lower() == ".parquet" else ArchiveShard(path, through=through)


class ArchiveShard(Shard):
    """A tar or zip file. Nothing about it is kept in the user's cache, which a stream would fill."""

    def __init__(self, path: Path, *, through: bool) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
            empty = os.fstat(self._file).st_size == 0  # a writer that was given no samples
        except OSError as error:
            raise DataError(f"the shard '{path}' cannot be read: {error.strerror}.") from error
        self.index: ShardIndex | None = None if empty else scanned(path, THROUGH if through else HEADERS)

    def __len__(self) -> int:
        """Return the number of images."""
        return 0 if self.index is None else len(self.index)

    def name(self, j: int) -> str:
        """Return shard and member."""
        assert self.index is not None
        return f"{self.path.name}/{os.fsdecode(self.index.names[j])}"

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Found]]:
        """Yield (j, sample), reading up to `PIECE` bytes at a time."""
        index = self.index
        assert index is not None
        start = 0
        while start < len(wanted):
            low, high = self._span(wanted[start])
            stop = start + 1
            while stop < len(wanted):
                a, b = self._span(wanted[stop])
                if a < low or a - high > GAP or b - low > PIECE:
                    break
                high, stop = max(high, b), stop + 1
            yield from self._piece(wanted[start:stop], low, high)
            start = stop

    def _span(self, j: int) -> tuple[int, int]:
        index = self.index
        assert index is not None
        at = int(index.at[j])
        header = 0 if int(index.method[j]) == PLAIN else ZIP_HEADER + len(index.names[j])
        return at, at + header + min(int(index.size[j]), PIECE)

    def _piece(self, wanted: Sequence[int], low: int, high: int) -> Iterator[tuple[int, Found]]:
        index = self.index
        assert index is not None
        data = b""
        with contextlib.suppress(OSError):  # each sample then says for itself whether it can be read
            data = os.pread(self._file, high - low, low)

        def pread(size: int, at: int) -> bytes:
            begin = at - low
            if begin >= 0 and begin + size <= len(data):
                return data[begin : begin + size]
            return whole(os.pread(self._file, size, at), size)

        for j in wanted:
            try:
                yield j, read_member(index, j, pread)
            except BadImage as error:
                yield j, error
            except OSError as error:
                yield j, BadImage("unreadable", error.strerror or str(error))

    @property
    def fingerprint(self) -> str:
        """Digest over names, places and sizes of all members."""
        if self.index is None:
            return digest("empty")
        return digest(self.index.names.blob, self.index.at, self.index.size)

    def __del__(self) -> None:
        """Close the file: only here, so that no thread reads from a number that means another file by now."""
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)


class ParquetShard(Shard):
    """A parquet file, read group of rows by group of rows as it lies there; the last group read is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"'{path}' cannot be read as parquet: {error}") from error
        rows = self._file.metadata.num_rows  # a file without any may not even say what its columns are
        self.column = image_column(self._file.schema_arrow, str(path)) if rows else ""
        counts = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:g]) for g in range(len(counts) + 1)]
        self._kept: tuple[int, pa.Array] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._starts[-1]

    def name(self, j: int) -> str:
        """Return file and row."""
        return f"{self.path.name}[{j}]"

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Found]]:
        """Yield (j, sample)."""
        group = 0
        for j in wanted:
            while not self._starts[group] <= j < self._starts[group + 1]:
                group += 1
            try:
                with self._lock:
                    data = self._group(group)[j - self._starts[group]].as_py()
            except (OSError, pa.ArrowException) as error:
                yield j, BadImage("unreadable", str(error))
                continue
            yield j, BadImage("empty", "no image in this row") if data is None else bytes(data)

    def _group(self, group: int) -> pa.Array:
        kept = self._kept
        if kept is None or kept[0] != group:
            images = self._file.read_row_group(group, columns=[self.column]).column(0).combine_chunks()
            if isinstance(images, pa.ChunkedArray):
                images = images.chunk(0) if images.num_chunks else pa.array([], pa.large_binary())
            kept = (group, images.field("bytes") if pa.types.is_struct(images.type) else images)
            self._kept = kept
        return kept[1]

    @property
    def fingerprint(self) -> str:
        """Digest over the numbers of rows and the sizes of all groups."""
        meta = self._file.metadata
        groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
        return digest(self.column, *(f"{group.num_rows} {group.total_byte_size}" for group in groups))
