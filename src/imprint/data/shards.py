"""Images inside zip and tar files, read at random through an offset index; nothing is unpacked.

The index of a shard is built once and kept in the user's cache until the shard's size or time changes. Reading is one
positioned read of the file, so threads share it without a lock; deflated zip members are inflated on the fly.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, DataError
from imprint.data.labels import labels_of_members, read_labels
from imprint.data.patterns import expanded
from imprint.data.shard_index import PLAIN, UNSUPPORTED, ZIP_DEFLATED, ShardIndex, shard_index
from imprint.data.sources import Labels, Sample, Source, digest

_OPEN = 256  # shards kept open; more are opened for each read
ZIP_HEADER = 30
_LARGEST = 1 << 30  # bytes of one member; more is no image, or a bomb


class ShardSource(Source):
    """Image members of zip and tar files, shard after shard, in the order they have inside.

    Labels, in the manner of WebDataset: when every image has a neighbour of the same key (the name up to its first
    dot) with the ending `.cls` (an int or a name) or `.json` (an entry `cls`, `label` or `class`), that is its label,
    and each key counts as one image. Otherwise members lie in folders as in `FolderSource`, below a folder that all of
    them share.
    """

    def __init__(self, paths: Sequence[Path], spec: str) -> None:
        self.spec, self.paths = spec, tuple(paths)
        with ThreadPoolExecutor(min(16, len(self.paths))) as pool:
            self.shards: list[ShardIndex] = list(pool.map(shard_index, self.paths))
        self.starts = np.concatenate([[0], np.cumsum([len(s) for s in self.shards])]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"'{spec}' holds no images in {len(self.paths)} shards.")
        self.classes, self.labels = self._labelled()
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def _labelled(self) -> tuple[tuple[str, ...], Labels | None]:
        if all((s.label >= 0).all() for s in self.shards):
            words = [np.array([w.decode() for w in s.words])[s.label] for s in self.shards if len(s)]
            return read_labels(np.concatenate(words), len(self), self.spec)
        return labels_of_members([name for s in self.shards for name in s.names])

    def __len__(self) -> int:
        """Return the number of images in all shards."""
        return int(self.starts[-1])

    def _locate(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        return shard, i - int(self.starts[shard])

    def read(self, i: int) -> Sample:
        """Return the bytes of image `i`.

        Raises:
            BadImage: when the member is cut off, damaged, encrypted, or packed in a way that is not supported.
        """
        shard, j = self._locate(i)
        return read_member(self.shards[shard], j, partial(self._pread, shard))

    def _pread(self, shard: int, size: int, at: int) -> bytes:
        handle = self._files.get(shard)
        kept = handle is not None
        if handle is None:
            with self._lock:
                handle = self._files.get(shard)
                kept = handle is not None or len(self._files) < _OPEN
                if handle is None:
                    handle = os.open(self.paths[shard], os.O_RDONLY)
                    if kept:
                        self._files[shard] = handle
        try:
            data = os.pread(handle, size, at)
        finally:
            if not kept:
                os.close(handle)
        return whole(data, size)

    def name(self, i: int) -> str:
        """Return shard and member."""
        shard, j = self._locate(i)
        return f"{self.paths[shard].name}/{os.fsdecode(self.shards[shard].names[j])}"

    @cached_property
    def fingerprint(self) -> str:
        """Digest over names, places and sizes of all members, and over the shards' sizes and times."""
        parts: list[str | npt.NDArray[np.generic]] = []
        for path, shard in zip(self.paths, self.shards, strict=True):
            stat = path.stat()
            parts += [f"{path.name} {stat.st_size} {stat.st_mtime_ns}", shard.names.blob, shard.at, shard.size]
        return digest(*parts)

    def __del__(self) -> None:
        """Close the shards."""
        for handle in getattr(self, "_files", {}).values():
            os.close(handle)


def open_shards(text: str) -> ShardSource:
    """Open a zip or tar file, or a pattern such as `train-{000..009}.tar` or `shards/*.zip`.

    Raises:
        DataError: when a shard is missing or cannot be read.
    """
    return ShardSource(expanded(text), text)


def read_member(index: ShardIndex, j: int, pread: Callable[[int, int], bytes]) -> bytes:
    """Return the bytes of image `j` of a shard.

    Args:
        index: what the shard holds.
        j: which image.
        pread: returns so many bytes from an offset of the shard, all of them.

    Raises:
        BadImage: when the member is damaged, encrypted, too large, or packed in a way that is not supported.
    """
    at, size, full, method = int(index.at[j]), int(index.size[j]), int(index.full[j]), int(index.method[j])
    if max(size, full) > _LARGEST:
        raise BadImage("too-large", f"a member of {max(size, full):,} bytes")
    if method == UNSUPPORTED:
        raise BadImage("unsupported", "a zip member that is encrypted, or packed in another way than deflate")
    if method == PLAIN:
        return pread(size, at)
    head = pread(ZIP_HEADER, at)  # a member's local header says where its data begins
    if head[:4] != b"PK\x03\x04":
        raise BadImage("corrupt", "no zip member where the directory says")
    name, extra = struct.unpack_from("<HH", head, 26)
    data = pread(size, at + ZIP_HEADER + name + extra)
    return _inflated(data, full) if method == ZIP_DEFLATED else data


def whole(data: bytes, size: int) -> bytes:
    """Return what was read from a shard.

    Raises:
        BadImage: when it is less than was asked for.
    """
    if len(data) < size:
        raise BadImage("truncated", f"the shard ends {size - len(data):,} bytes early")
    return data


def _inflated(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(data, max(1, size))  # never more than the directory announced
    except zlib.error as error:
        raise BadImage("corrupt", str(error)) from error
