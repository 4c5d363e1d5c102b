"""Where the images of one zip or tar file lie, and the labels that lie beside them."""

from __future__ import annotations

import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError
from imprint.data.compact import Names, cache_path, read_cache, write_cache
from imprint.data.index import is_image

log = logging.getLogger(__name__)

PLAIN, ZIP_STORED, ZIP_DEFLATED, UNSUPPORTED = range(4)
_COLUMNS = ("at", "size", "full", "method", "label")
_LABEL_KEYS = ("cls", "label", "class")


@dataclass
class ShardIndex:
    """The image members of one shard.

    Attributes:
        names: member names.
        at: uint64, where the data begins (tar) or the local header (zip).
        size: uint64, bytes in the shard.
        full: uint64, bytes after unpacking.
        method: uint8, one of PLAIN, ZIP_STORED, ZIP_DEFLATED, UNSUPPORTED.
        label: int32, position in `words`, or -1.
        words: labels as they were written.
    """

    names: Names
    at: npt.NDArray[np.uint64]
    size: npt.NDArray[np.uint64]
    full: npt.NDArray[np.uint64]
    method: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int32]
    words: Names

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)


class Member(NamedTuple):
    """One file in a shard; the fields are those of `ShardIndex`."""

    name: bytes
    at: int
    size: int
    full: int
    method: int
    content: Callable[[], bytes]


@dataclass
class _Gathered:
    members: list[Member] = field(default_factory=list)
    words: dict[bytes, bytes] = field(default_factory=dict)
    sidecars: set[bytes] = field(default_factory=set)


def shard_index(path: Path) -> ShardIndex:
    """Return the index of a shard, from the cache unless its size or modification time changed.

    Raises:
        DataError: when the file cannot be read as the archive its name says.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"the shard '{path}' cannot be read: {error.strerror}.") from error
    stored_at = cache_path("shards", str(path.resolve()))
    stamp = np.array([stat.st_size, stat.st_mtime_ns], dtype=np.int64)
    stored = read_cache(stored_at)
    if stored is not None and "stamp" in stored and np.array_equal(stored["stamp"], stamp):
        names, words = Names.stored(stored, "names"), Names.stored(stored, "words")
        return ShardIndex(names=names, words=words, **{k: stored[k] for k in _COLUMNS})
    index = scanned(path)
    arrays = {k: getattr(index, k) for k in _COLUMNS}
    write_cache(stored_at, {"stamp": stamp} | arrays | index.names.arrays("names") | index.words.arrays("words"))
    return index


def scanned(path: Path, buffer: int = -1) -> ShardIndex:
    """Read the index of a shard from its headers.

    Args:
        path: the shard.
        buffer: bytes per read of a tar. A large one reads the file through from end to end, so that what follows finds
            it in the page cache; a small one touches little more than the headers. -1 takes the system's.

    Raises:
        DataError: when the file cannot be read as the archive its name says.
    """
    gathered = _Gathered()
    try:
        for member in files_in(path, buffer):
            _gather(gathered, member)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        if not gathered.members:
            raise DataError(f"the shard '{path}' cannot be read: {error}. Fetch or write it again.") from error
        log.warning("the shard '%s' is cut off (%s); using the %d images before", path, error, len(gathered.members))
    members = _one_per_key(gathered)
    words = sorted(set(gathered.words.values()))
    position = {word: k for k, word in enumerate(words)}
    labels = [position.get(gathered.words.get(key_of(m.name), b"\0"), -1) for m in members]
    return ShardIndex(
        names=Names.of(m.name for m in members),
        at=np.array([m.at for m in members], dtype=np.uint64),
        size=np.array([m.size for m in members], dtype=np.uint64),
        full=np.array([m.full for m in members], dtype=np.uint64),
        method=np.array([m.method for m in members], dtype=np.uint8),
        label=np.array(labels, dtype=np.int32),
        words=Names.of(words),
    )


def _gather(gathered: _Gathered, member: Member) -> None:
    base = member.name.rpartition(b"/")[2]
    if base.startswith(b".") or member.name.startswith(b"__MACOSX/") or b"/__MACOSX/" in member.name:
        return
    if is_image(base):
        gathered.members.append(member._replace(content=bytes))
    elif base.endswith((b".cls", b".json")) and member.full < 1 << 20:
        key = key_of(member.name)
        gathered.sidecars.add(key)
        word = _label(base, member.content())
        if word and (base.endswith(b".cls") or key not in gathered.words):
            gathered.words[key] = word


def _label(base: bytes, content: bytes) -> bytes:
    if base.endswith(b".cls"):
        return content.strip()
    try:
        entry = json.loads(content)
    except ValueError:
        return b""
    found = next((entry[k] for k in _LABEL_KEYS if k in entry), None) if isinstance(entry, dict) else None
    return str(found).encode() if isinstance(found, (int, str)) else b""


def _one_per_key(gathered: _Gathered) -> list[Member]:
    """Keep the first image of every key that has a sidecar (the others are its masks and depths)."""
    seen: set[bytes] = set()
    kept = []
    for member in gathered.members:
        key = key_of(member.name)
        if key in gathered.sidecars:
            if key in seen:
                continue
            seen.add(key)
        kept.append(member)
    return kept


def key_of(name: bytes) -> bytes:
    """Return what a member shares with those that belong to it: its path up to the first dot of its name."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def files_in(path: Path, buffer: int = -1) -> Iterator[Member]:
    """Yield every file in a shard, in its order; `content` reads it."""
    return _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path, buffer)


def _zip_members(path: Path) -> Iterator[Member]:
    methods = {zipfile.ZIP_STORED: ZIP_STORED, zipfile.ZIP_DEFLATED: ZIP_DEFLATED}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            method = UNSUPPORTED if info.flag_bits & 1 else methods.get(info.compress_type, UNSUPPORTED)
            content = bytes if method == UNSUPPORTED else partial(archive.read, info)
            name = info.filename.encode("utf-8", "surrogateescape")
            yield Member(name, info.header_offset, info.compress_size, info.file_size, method, content)


def _tar_members(path: Path, buffer: int) -> Iterator[Member]:
    with open(path, "rb", buffering=buffer) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # the module would keep every header
            if not info.isreg() or info.issparse():
                continue
            name = info.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
            content = partial(os.pread, file.fileno(), info.size, info.offset_data)
            yield Member(name, info.offset_data, info.size, info.size, PLAIN, content)
