"""The index of a folder tree: built in parallel, kept compactly in the user's cache, refreshed where it changed.

Order: directories by their path relative to the root, as bytes; within each, files by name, as bytes. It depends on
nothing else, so sample numbers agree between machines.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError
from imprint.data.compact import Names, cache_path, read_cache, write_cache

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".npy")
)
"""What counts as an image in a folder or an archive, in lower case; other files are passed over."""

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".mts", ".m2ts")
)
"""What counts as a video file, in lower case."""

_SUFFIXES = tuple(e.encode() for e in sorted(EXTENSIONS))
_SETTLED_NS = 2_000_000_000  # a directory touched this recently may change again within its timestamp's resolution
_WIDE = 64  # directories at one level before threads pay


def is_image(name: bytes) -> bool:
    """Tell whether a file name has an image extension and is not hidden."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(b".")


def is_video(name: str) -> bool:
    """Tell whether a file name or path has a video extension and is not hidden."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in VIDEO_EXTENSIONS and not base.startswith(".")


@dataclass
class Tree:
    """All image files under a root: names by directory, and the state of every directory when it was read.

    Attributes:
        dirs: directory paths relative to the root ('' is the root), in byte order.
        starts: int64 (D + 1), position of each directory's first file.
        names: base names of all files.
        state: int64 (D, 3), modification time in ns (-1: too fresh to trust), device and inode of each directory.
        children: per directory its subdirectories as stored words.
        reread: how many directories the last refresh had to list; 0 when the cache was up to date.
    """

    dirs: Names
    starts: npt.NDArray[np.int64]
    names: Names
    state: npt.NDArray[np.int64]
    children: Names
    reread: int = field(default=0, compare=False)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)

    def path(self, i: int) -> bytes:
        """Return file `i` relative to the root."""
        directory = self.dirs[int(np.searchsorted(self.starts, i, side="right")) - 1]
        return directory + b"/" + self.names[i] if directory else self.names[i]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is stored."""
        stored = {"starts": self.starts, "state": self.state}
        return stored | self.dirs.arrays("dirs") | self.names.arrays("names") | self.children.arrays("children")

    @classmethod
    def stored(cls, arrays: dict[str, npt.NDArray[Any]]) -> Tree:
        """Return what `arrays` stored."""
        dirs, names, children = (Names.stored(arrays, k) for k in ("dirs", "names", "children"))
        return cls(dirs, arrays["starts"], names, arrays["state"], children)


def indexed(root: Path, *, cache: bool = True) -> Tree:
    """Return the index of the images under `root`, from the cache as far as it is up to date.

    A directory is listed again when its modification time, device or inode differ from what was stored; all others
    cost one `stat`. Symbolic links to directories are followed once: a directory that was reached already, by its
    (device, inode), is not entered again, and real directories are entered before links.

    Raises:
        DataError: when `root` cannot be read.
    """
    root = root.expanduser().resolve()
    path = cache_path("index", str(root))
    stored = read_cache(path) if cache else None
    known = Tree.stored(stored) if stored is not None else None
    tree = scan(root, known)
    if cache and (known is None or tree is not known):
        write_cache(path, tree.arrays())
    return tree


@dataclass
class _Listing:
    """One directory as it was found."""

    state: tuple[int, int, int]
    subdirs: list[bytes]
    links: list[bytes]
    names: list[bytes] | None  # None: as in row `row` of the known index
    row: int = -1

    def packed(self, known: Tree | None) -> tuple[bytes, npt.NDArray[np.uint32]]:
        """Return its file names, for `Names.packed`."""
        if self.names is None:
            assert known is not None
            return known.names.part(int(known.starts[self.row]), int(known.starts[self.row + 1]))
        return b"".join(self.names), np.fromiter(map(len, self.names), np.uint32, len(self.names))


def scan(root: Path, known: Tree | None = None) -> Tree:
    """List the tree, taking from `known` every directory that has not changed; returns `known` itself if none has."""
    top = os.fsencode(root)
    rows = {} if known is None else {known.dirs[i]: i for i in range(len(known.dirs))}
    walk = _Walk(top, known, rows)
    try:
        listing = walk.list(b"")
    except OSError as error:
        raise DataError(f"the folder '{root}' cannot be read: {error.strerror or error}.") from error
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        links = walk.descend([(b"", listing)], pool)
        while links:
            reached = walk.enter(sorted(links), pool)
            links = walk.descend(reached, pool)
    found = sorted(walk.found.items())
    reread = sum(entry.names is not None for _, entry in found)
    if known is not None and reread == 0 and len(found) == len(known.dirs):
        return known
    packed = [entry.packed(known) for _, entry in found]
    counts = np.array([lengths.size for _, lengths in packed], dtype=np.int64)
    return Tree(
        dirs=Names.of(name for name, _ in found),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        names=Names.packed(packed),
        state=np.array([entry.state for _, entry in found], dtype=np.int64).reshape(-1, 3),
        children=Names.of(_pack(entry) for _, entry in found),
        reread=reread,
    )


def _pack(entry: _Listing) -> bytes:
    return b"\0".join([b"d" + n for n in entry.subdirs] + [b"l" + n for n in entry.links])


class _Walk:
    """Breadth-first over real directories, level by level; links are handed back and entered afterwards."""

    def __init__(self, top: bytes, known: Tree | None, rows: dict[bytes, int]) -> None:
        self.top, self.known, self.rows = top, known, rows
        self.found: dict[bytes, _Listing] = {}
        self.seen: set[tuple[int, int]] = set()
        self.now = time.time_ns()

    def descend(self, level: list[tuple[bytes, _Listing]], pool: ThreadPoolExecutor) -> list[bytes]:
        """Keep the listings of `level`, list everything below, and return the links met on the way."""
        links: list[bytes] = []
        while level:
            wanted: list[bytes] = []
            for name, listing in level:
                identity = listing.state[1:]
                if identity in self.seen:
                    continue
                self.seen.add(identity)
                self.found[name] = listing
                prefix = name + b"/" if name else b""
                wanted += [prefix + n for n in listing.subdirs]
                links += [prefix + n for n in listing.links]
            level = self.enter(sorted(wanted), pool)
        return links

    def enter(self, names: list[bytes], pool: ThreadPoolExecutor) -> list[tuple[bytes, _Listing]]:
        """List the directories that can be listed; one that vanished or is closed to us is passed over, and said."""

        def attempt(name: bytes) -> _Listing | None:
            try:
                return self.list(name)
            except (FileNotFoundError, NotADirectoryError):  # vanished meanwhile, a dangling link, a link to a file
                return None
            except OSError as error:
                log.warning("passing over the folder '%s': %s", os.fsdecode(name), error.strerror)
                return None

        listings = pool.map(attempt, names, chunksize=1) if len(names) >= _WIDE else map(attempt, names)
        return [(name, listing) for name, listing in zip(names, listings, strict=True) if listing is not None]

    def list(self, name: bytes) -> _Listing:
        path = self.top + b"/" + name if name else self.top
        stat = os.stat(path)
        identity = (stat.st_dev, stat.st_ino)
        row = self.rows.get(name)
        if self.known is not None and row is not None:
            state = tuple(int(v) for v in self.known.state[row])
            if state == (stat.st_mtime_ns, *identity):
                return self._recall(row, (stat.st_mtime_ns, *identity))
        trusted = stat.st_mtime_ns < self.now - _SETTLED_NS
        names, subdirs, links = _listed(path)
        return _Listing((stat.st_mtime_ns if trusted else -1, *identity), subdirs, links, names)

    def _recall(self, row: int, state: tuple[int, int, int]) -> _Listing:
        assert self.known is not None
        words = self.known.children[row]
        children = words.split(b"\0") if words else []
        subdirs = [w[1:] for w in children if w[:1] == b"d"]
        links = [w[1:] for w in children if w[:1] == b"l"]
        return _Listing(state, subdirs, links, None, row)


def _listed(path: bytes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return image files, subdirectories and links that may be directories, each in byte order.

    A link with an image extension is taken for a file without asking the disk: folders of a million linked images are
    common, directories called `x.jpg` are not.
    """
    names: list[bytes] = []
    subdirs: list[bytes] = []
    links: list[bytes] = []
    known: dict[bytes, bool] = {}  # the last five bytes decide, and a folder has few different ones
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            tail = name[-5:]
            image = known.get(tail)
            if image is None:
                image = known[tail] = tail.lower().endswith(_SUFFIXES)
            if entry.is_dir(follow_symlinks=False):
                subdirs.append(name)
            elif image:
                names.append(name)
            elif entry.is_symlink():
                links.append(name)
    return _visible(names), [n for n in _visible(subdirs) if n != b"__MACOSX"], _visible(links)


def _visible(names: list[bytes]) -> list[bytes]:
    names.sort()
    first, last = bisect_left(names, b"."), bisect_left(names, b"/")  # '/' follows '.': the hidden ones lie together
    del names[first:last]
    return names
