"""Many names in little memory, and the files in the user's cache that hold what is slow to find out again.

A cache file is one blob: a magic word, a JSON table of arrays, and the arrays themselves, aligned, so that opening it
is a memory map. It is written aside and renamed, so processes that build the same file at once do not clash: each
reads a whole file, whoever wrote it. Nothing is synced to disk: a file that a power cut left short fails the check of
its length and is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

_MAGIC = b"IMPRINTX"
_VERSION = 1


def cache_dir() -> Path:
    """Return where Imprint keeps what it can rebuild: `$IMPRINT_CACHE`, else the platform's cache folder."""
    if chosen := os.environ.get("IMPRINT_CACHE"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "imprint"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "imprint"
    return Path.home() / ".cache" / "imprint"


class Names(Sequence[bytes]):
    """Many byte strings as one blob and offsets: 1,000,000 file names take about 25 MB, in memory or mapped."""

    def __init__(self, blob: npt.NDArray[np.uint8], offsets: npt.NDArray[Any]) -> None:
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Names:
        """Pack byte strings."""
        names = list(names)
        return cls.packed([(b"".join(names), np.fromiter(map(len, names), np.uint32, len(names)))])

    @classmethod
    def packed(cls, parts: Sequence[tuple[bytes, npt.NDArray[np.uint32]]]) -> Names:
        """Chain blobs that are packed already, each with the lengths of its strings."""
        blob = np.frombuffer(b"".join(b for b, _ in parts), dtype=np.uint8)
        lengths = np.concatenate([n for _, n in parts]) if parts else np.zeros(0, np.uint32)
        offsets = np.zeros(lengths.size + 1, dtype=np.uint64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(blob, offsets.astype(np.uint32) if blob.size < 1 << 32 else offsets)

    def __len__(self) -> int:
        """Return how many there are."""
        return max(0, len(self.offsets) - 1)

    def __getitem__(self, i: Any) -> Any:
        """Return string `i`."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.blob[int(self.offsets[i]) : int(self.offsets[i + 1])].tobytes()

    def part(self, start: int, stop: int) -> tuple[bytes, npt.NDArray[np.uint32]]:
        """Return strings start..stop packed, for `packed`."""
        blob = self.blob[int(self.offsets[start]) : int(self.offsets[stop])].tobytes()
        return blob, np.diff(self.offsets[start : stop + 1]).astype(np.uint32)

    def arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return what `write_cache` stores."""
        return {f"{prefix}.blob": self.blob, f"{prefix}.offsets": self.offsets}

    @classmethod
    def stored(cls, arrays: dict[str, npt.NDArray[Any]], prefix: str) -> Names:
        """Return what `arrays` stored."""
        return cls(arrays[f"{prefix}.blob"], arrays[f"{prefix}.offsets"])


def cache_path(kind: str, *identity: str) -> Path:
    """Return the cache file of something identified by words, such as an absolute path."""
    name = hashlib.blake2b("\0".join(identity).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return cache_dir() / kind / f"{name}.bin"


def write_cache(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> bool:
    """Write arrays aside and rename; return False (and log why) where the cache cannot be written."""
    table: dict[str, Any] = {}
    position = 0
    for name, array in arrays.items():
        table[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "at": position}
        position += -(-array.nbytes // 64) * 64
    head = json.dumps({"version": _VERSION, "size": position, "arrays": table}).encode()
    start = _data_start(len(head))
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + len(head).to_bytes(4, "little") + zlib.crc32(head).to_bytes(4, "little") + head)
            for name, array in arrays.items():
                file.seek(start + table[name]["at"])
                file.write(np.ascontiguousarray(array).data if array.size else b"")
            file.truncate(start + position)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("the cache at %s cannot be written (%s); going on without it", path.parent, error)
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True


def read_cache(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """Memory-map a cache file; None when it is absent, damaged or of another version."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            head = file.read(int.from_bytes(start[8:12], "little")) if start[:8] == _MAGIC else b""
            if not head or zlib.crc32(head) != int.from_bytes(start[12:16], "little"):
                return None
            table = json.loads(head)
            begin = _data_start(len(head))
            if table["version"] != _VERSION or os.fstat(file.fileno()).st_size != begin + table["size"]:
                return None
            data = np.memmap(file, dtype=np.uint8, mode="r", offset=0) if table["size"] else np.zeros(0, np.uint8)
    except (OSError, ValueError, KeyError):
        return None
    found = {}
    for name, entry in table["arrays"].items():
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape)) * dtype.itemsize
        at = begin + entry["at"]
        found[name] = data[at : at + count].view(np.ndarray).view(dtype).reshape(shape)
    return found


def _data_start(head: int) -> int:
    return -(-(16 + head) // 64) * 64
