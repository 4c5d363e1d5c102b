"""Where images come from: one contract over folders, lists, shards, datasets and arrays, and the words that open them.

A source hands over raw samples (encoded bytes, or an array that needs no decoding) by position, without state: `read`
may be called from any thread in any order. Decoding, views and the treatment of damaged samples are the loader's.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, ConfigError, DataError, unknown
from imprint.data.headers import Layout, layout_of
from imprint.data.index import is_video
from imprint.data.patterns import expanded

if TYPE_CHECKING:
    from imprint.data.sampler import Order

Sample = bytes | npt.NDArray[Any]
Labels = npt.NDArray[np.int64]


class Source(ABC):
    """A finite, ordered set of images, or of texts (`pixels` False).

    Attributes:
        spec: the words it was opened with.
        pixels: whether samples are images; text alone has none.
        labels: int64 class of each sample, or None when the source has no labels.
        classes: class names by label; empty without labels.
    """

    spec: str = ""
    pixels: bool = True
    labels: Labels | None = None
    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples, damaged ones included."""

    @abstractmethod
    def read(self, i: int) -> Sample:
        """Return sample `i`: encoded bytes, or a uint8 or uint16 array (H, W, C).

        Raises:
            OSError: when the storage fails; the loader quarantines the sample as unreadable.
            BadImage: when the container already shows that the sample is damaged.
        """

    @abstractmethod
    def name(self, i: int) -> str:
        """Return what a person finds sample `i` by: a path, or shard and member."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes when the samples do; the key of what is cached about them."""

    @cached_property
    def layout(self) -> Layout:
        """Channels and bit depth, from the headers of up to 16 samples spread over the source.

        The widest of them counts: a colour set with some grey photographs has three channels.
        """
        found: list[Layout] = []
        for i in spread(len(self), 16):
            try:
                sample = self.read(int(i))
                found.append(layout_of(sample))
            except (BadImage, OSError):
                continue
        channels = max((f.channels for f in found), default=3)
        deep = any(f.dtype == np.uint16 for f in found)
        return Layout(channels, np.dtype(np.uint16 if deep else np.uint8))

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.layout.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16, the depth samples are delivered in."""
        return self.layout.dtype

    def tokens(self, seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """Return what stands in `Batch.tokens` of these samples, a pure function of the arguments; {} without text."""
        return {}

    def targets(self, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Return what stands in `Batch.targets` of these samples; {} where nothing is known about them."""
        return {}

    def order(self, *, batch_size: int, seed: int, shuffle: bool, drop_last: bool, rank: int, world: int) -> Order:
        """Return which samples form which step; see `Sampler`."""
        from imprint.data.sampler import Sampler

        return Sampler(
            size=len(self),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world=world,
        )

    def stand_ins(self, i: int) -> tuple[int, int]:
        """Return (first, number) of the samples of which one may take the place of a damaged sample `i`."""
        return 0, len(self)

    def holds(self, i: int, name: str) -> bool:
        """Tell whether sample `i` is called `name`."""
        return 0 <= i < len(self) and self.name(i) == name

    def subset(self, indices: npt.ArrayLike) -> Source:
        """Return the samples at `indices`, in that order (a boolean mask works as well)."""
        from imprint.data.combine import Subset

        return Subset(self, indices)

    def aligned(self, classes: Sequence[str]) -> Source:
        """Return the same samples with labels that count by `classes`, so that two sources can be compared.

        Raises:
            DataError: when the source has no labels or a class that `classes` lacks.
        """
        from imprint.data.combine import Aligned

        return Aligned(self, tuple(classes))

    def __repr__(self) -> str:
        """Say what it is, how large, and whether labels are known."""
        labels = f", {len(self.classes)} classes" if self.labels is not None else ", no labels"
        return f"{type(self).__name__}({self.spec!r}, {len(self)} samples{labels})"


def open_source(spec: str | os.PathLike[str] | Source | Sequence[Any]) -> Source:
    """Open images by words: see `docs/data.md` for all forms.

    A folder; a file list (`.txt`, `.csv`); `.zip` and `.tar` shards or a pattern of them; `.parquet`; `.npy` and
    `.npz`; video files or a pattern of them; `hf:NAME[:split]`; `photos[:train|:test]`; several of these as a tuple. A
    folder without images but with video files, or a list of them, gives their frames. A Source passes through.

    Raises:
        ConfigError: when the words name no kind of source.
        DataError: when the place does not exist or holds no images.
    """
    if isinstance(spec, Source):
        return spec
    if not isinstance(spec, (str, os.PathLike)):
        from imprint.data.combine import Concat

        parts = [open_source(part) for part in _films_together(spec)]
        return parts[0] if len(parts) == 1 else Concat(parts)
    text = os.fspath(spec)
    source = _open_text(text)
    if len(source) == 0:
        raise DataError(f"'{text}' holds no images. Check the path and the file extensions.")
    return source


def _open_text(text: str) -> Source:
    kind, _, rest = text.partition(":")
    if kind == "photos":
        from imprint.data.photos import photos

        return photos(rest or "train")
    if kind == "hf" and rest:
        from imprint.data.huggingface import open_huggingface

        return open_huggingface(rest)
    path = Path(text).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            from imprint.data.huggingface import open_huggingface

            return open_huggingface(text)
        return _open_folder(path)
    if is_video(text):
        return _open_films([text])
    if suffix in (".zip", ".tar"):
        from imprint.data.shards import open_shards

        return open_shards(text)
    if suffix == ".parquet":
        from imprint.data.parquet import open_parquet

        return open_parquet(text)
    if not path.exists():
        _refuse(text, path)
    if suffix in (".txt", ".csv"):
        from imprint.data.filelist import open_list

        listed = open_list(path)
        if not any(is_video(os.fsdecode(name)) for name in listed.paths):
            return listed
        from imprint.data.video_sources import open_listed

        return open_listed(listed)
    if suffix in (".npy", ".npz"):
        from imprint.data.arrays import open_arrays

        return open_arrays(path)
    if text.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(
            f"'{text}' is a compressed tar, which cannot be read at random. Unpack it to a .tar first (images do not "
            "shrink by compression)."
        )
    raise ConfigError(
        f"'{text}' is no kind of source. Give a folder, a file list (.txt, .csv), shards (.zip, .tar), a .parquet, "
        "a .npy or .npz file, a video file (.mp4, .avi, .mkv, .webm, .mov, ...), hf:NAME or photos."
    )


def _open_folder(path: Path) -> Source:
    """Open a folder as its images or, where it has none, as the frames of its video files."""
    from imprint.data.folder import FolderSource

    try:
        return FolderSource(path)
    except DataError:
        from imprint.data.video_sources import open_video_folder

        films = open_video_folder(path)
        if films is None:
            raise
        return films


def _films_together(specs: Sequence[Any]) -> list[Any]:
    """Open neighbouring video files as one source, so that one that cannot be used is left out of it."""
    grouped: list[Any] = []
    for films, run in itertools.groupby(specs, _is_film):
        words = list(run)
        grouped += [_open_films(list(map(os.fspath, words)))] if films else words
    return grouped


def _is_film(spec: Any) -> bool:
    if not isinstance(spec, (str, os.PathLike)):
        return False
    return is_video(os.fspath(spec)) and not Path(spec).expanduser().is_dir()


def _open_films(words: Sequence[str]) -> Source:
    from imprint.data.video_sources import open_videos

    return open_videos([path for word in words for path in expanded(word)], ", ".join(words))


def _refuse(text: str, path: Path) -> None:
    if re.fullmatch(r"[A-Za-z_]+(:\w+)?", text) and not path.parent.name:
        raise unknown("source", text.partition(":")[0], ("photos", "hf:NAME"))
    near = path.parent
    while not near.exists() and near != near.parent:
        near = near.parent
    raise DataError(f"'{text}' does not exist (the part that does is '{near}'). Check the spelling of the path.")


def spread(size: int, count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` positions spread evenly and in order over range(size)."""
    count = min(size, count)
    return np.arange(count, dtype=np.int64) * size // max(1, count)


def digest(*parts: str | bytes | npt.NDArray[Any]) -> str:
    """Return a 128-bit hex digest over words and arrays, with their boundaries."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data: Any = part.encode() if isinstance(part, str) else part
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if part.size else b""
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()
