"""Videos with object masks: the layout of DAVIS, and plain folders of sequences, in a folder or a zip.

Understood, at any depth (a zip is read in place):

- `JPEGImages/<resolution>/<sequence>/00000.jpg` with `Annotations/<resolution>/<sequence>/00000.png` (DAVIS; without
  the folder of the resolution: YouTube-VOS), and lists of sequences in `ImageSets/**/<list>.txt`;
- `<sequence>/frames/*.jpg` with `<sequence>/masks/*.png`, and `frames/<sequence>/...` with `masks/<sequence>/...`;
- `<sequence>/00000.jpg` beside `<sequence>/00000.png`.

A mask holds 0 for the background and k for object k (palette or grey PNG; 255 is void and not scored), or 0 and 255
for one object (DAVIS 2016). Frames are in numeric order; a mask belongs to the frame of the same name or number.
"""

from __future__ import annotations

import io
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from imprint.core.errors import BadImage, DataError, unknown
from imprint.data.decode import decode, read_header
from imprint.data.sources import digest

VOID = 255
PREFERRED = "480p"
FRAME_FOLDERS = ("jpegimages", "frames", "images")
MASK_FOLDERS = ("annotations", "masks")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Video:
    """One sequence.

    Attributes:
        name: of the sequence.
        frames: files of its frames in order.
        masks: the file of each frame's mask, or None.
        read: returns the bytes of a file.
    """

    name: str
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]
    read: Read = field(repr=False, compare=False)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def frame(self, i: int) -> npt.NDArray[np.uint8]:
        """Return frame `i`, uint8 (H, W, 3).

        Raises:
            DataError: naming the file that cannot be decoded, or whose size is not that of the first frame.
        """
        path = self.frames[i]
        try:
            pixels = decode(self.read(path))
        except BadImage as error:
            raise DataError(f"frame {path} of sequence '{self.name}' cannot be read ({error}).") from error
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.shape[:2] != self.shape:
            raise DataError(
                f"frame {path} has {pixels.shape[1]} x {pixels.shape[0]} pixels and the first frame of '{self.name}' "
                f"{self.shape[1]} x {self.shape[0]}; the frames of a sequence must have one size."
            )
        return np.asarray(pixels, dtype=np.uint8)

    def mask(self, i: int) -> npt.NDArray[np.uint8] | None:
        """Return the mask of frame `i`, uint8 (H, W), 0 background, k object k, 255 void; None where there is none.

        Raises:
            DataError: naming the file that is no mask, or whose size is not that of the frames.
        """
        path = self.masks[i]
        if path is None:
            return None
        ids = read_mask(self.read(path), path)
        if ids.shape != self.shape:
            raise DataError(
                f"mask {path} has {ids.shape[1]} x {ids.shape[0]} pixels and the frames of '{self.name}' "
                f"{self.shape[1]} x {self.shape[0]}; take masks and frames of the same resolution."
            )
        return (ids == VOID).astype(np.uint8) if self._binary else ids

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        try:
            header = read_header(self.read(self.frames[0]))
        except BadImage as error:
            raise DataError(f"frame {self.frames[0]} of sequence '{self.name}' cannot be read ({error}).") from error
        return header.height, header.width

    @cached_property
    def _binary(self) -> bool:
        """Whether masks are 0 and 255 for one object: true when the first one with anything in it is."""
        for path in self.masks:
            if path is not None:
                ids = read_mask(self.read(path), path)
                if ids.any():
                    return set(np.unique(ids).tolist()) <= {0, VOID}
        return False


def read_mask(data: bytes, path: str) -> npt.NDArray[np.uint8]:
    """Return the numbers a mask file holds, uint8 (H, W): palette indices, or grey values.

    Raises:
        DataError: for files that are no picture, in colour, or with numbers above 255.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.asarray(image.convert("L") if image.mode == "1" else image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"mask {path} cannot be read ({error}).") from error
    if array.ndim == 3 and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]  # grey written as colour
    if array.ndim != 2:
        raise DataError(
            f"mask {path} is a colour picture ({array.shape[2]} channels); masks are palette or grey PNG files whose "
            "values are the numbers of the objects."
        )
    if array.size and int(array.max()) > 255:
        raise DataError(f"mask {path} holds numbers up to {int(array.max())}; at most 255 are supported.")
    return np.array(array, dtype=np.uint8, order="C")


@dataclass(frozen=True)
class VideoSource:
    """Sequences with masks, in the order of their list or of their names.

    Attributes:
        spec: the words it was opened with.
        sequences: the videos.
        fingerprint: hex digest over names and contents of all their files.
        channels: 3.
    """

    spec: str
    sequences: tuple[Video, ...]
    fingerprint: str
    channels: int = 3

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.sequences)


def open_videos(spec: str | os.PathLike[str], wanted: Sequence[str] = ()) -> VideoSource:
    """Open a folder or a zip of sequences.

    Args:
        spec: the folder or the .zip file.
        wanted: names of sequences, or of lists (`2017/val`, `val`, or a text file with one name per line); empty
            takes all.

    Raises:
        DataError: for a path that does not exist, no sequence, an unknown name, a sequence of fewer than two frames, or
            one without a mask of its first frame.
    """
    root = Path(spec)
    if root.is_dir():
        files = {p.relative_to(root).as_posix(): p for p in _walk(root)}
        return _source(str(spec), list(files), lambda name: files[name].read_bytes(), None, wanted)
    if not root.is_file():
        raise DataError(f"'{spec}' does not exist; give a folder or a zip of videos in the layout of DAVIS.")
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"'{spec}' is neither a folder nor a readable zip ({error}).") from error
    lock = threading.Lock()

    def read(name: str) -> bytes:
        with lock:
            try:
                return archive.read(name)
            except (zipfile.BadZipFile, OSError, zlib.error) as error:
                raise DataError(f"{name} in '{spec}' is damaged ({error}).") from error

    sums = {info.filename: info.CRC for info in archive.infolist() if not info.is_dir()}
    return _source(str(spec), list(sums), read, sums, wanted)


def _walk(root: Path) -> Iterable[Path]:
    for folder, _, names in os.walk(root, followlinks=True):
        yield from (Path(folder, name) for name in names)


def _source(
    spec: str, files: list[str], read: Read, sums: Mapping[str, int] | None, wanted: Sequence[str]
) -> VideoSource:
    found = _sequences([f for f in files if _visible(f)], read, Path(spec).stem)
    if not found:
        raise DataError(
            f"'{spec}' holds no videos. Expected JPEGImages/480p/SEQUENCE/00000.jpg with "
            "Annotations/480p/SEQUENCE/00000.png, or one folder per sequence with frames and masks."
        )
    names = _wanted(wanted, found, files, read) if wanted else sorted(found, key=numeric)
    chosen = tuple(found[name] for name in names)
    for sequence in chosen:
        if len(sequence) < 2:
            raise DataError(f"sequence '{sequence.name}' of '{spec}' has one frame; a video needs at least two.")
        if sequence.masks[0] is None:
            raise DataError(
                f"sequence '{sequence.name}' of '{spec}' has no mask for its first frame {sequence.frames[0]}; "
                f"put one under the same name into Annotations, or leave the sequence out with --sequences."
            )
    state = [
        f"{file}|{sums[file] if sums is not None else zlib.crc32(read(file))}"
        for sequence in chosen
        for file in (*sequence.frames, *(mask for mask in sequence.masks if mask is not None))
    ]
    return VideoSource(spec, chosen, digest(*state))


def _visible(file: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(file).parts)


def numeric(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts numbers inside names by value: frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def _sequences(files: list[str], read: Read, root: str) -> dict[str, Video]:
    """Sort files into frames and masks of sequences, of the one resolution that is taken."""
    frames: dict[str, dict[str, list[str]]] = {}
    masks: dict[str, dict[str, list[str]]] = {}
    pictures = [f for f in files if PurePosixPath(f).suffix.lower() in IMAGES]
    stems = {str(PurePosixPath(f).with_suffix("")) for f in pictures if not f.lower().endswith(".png")}
    for file in pictures:
        path = PurePosixPath(file)
        kind, resolution, name = _place(path.parts[:-1], root)
        if kind is None:
            twin = path.suffix.lower() == ".png" and str(path.with_suffix("")) in stems
            kind = "masks" if twin else "frames"
        (masks if kind == "masks" else frames).setdefault(resolution, {}).setdefault(name, []).append(file)
    if not frames:
        return {}
    shared = [r for r in frames if r in masks] or list(frames)
    resolution = PREFERRED if PREFERRED in shared else min(shared, key=numeric)
    labelled = masks.get(resolution, {})
    return {name: _sequence(name, own, labelled.get(name, []), read) for name, own in frames[resolution].items()}


def _place(folders: tuple[str, ...], root: str) -> tuple[str | None, str, str]:
    """Return (frames, masks or None, resolution, sequence) of a file in these folders."""
    for i in range(len(folders) - 1, -1, -1):
        word = folders[i].lower()
        if word in FRAME_FOLDERS or word in MASK_FOLDERS:
            kind = "masks" if word in MASK_FOLDERS else "frames"
            before, after = folders[:i], folders[i + 1 :]
            if after:
                return kind, "/".join(after[:-1]), after[-1]
            return kind, "", before[-1] if before else root
    return None, "", folders[-1] if folders else root


def _sequence(name: str, frames: list[str], masks: list[str], read: Read) -> Video:
    ordered = sorted(frames, key=lambda f: numeric(PurePosixPath(f).stem))
    by_stem = {PurePosixPath(m).stem: m for m in masks}
    by_number = {_number(stem): m for stem, m in by_stem.items()}

    def mask_of(frame: str) -> str | None:
        stem = PurePosixPath(frame).stem
        return by_stem.get(stem) or (by_number.get(_number(stem)) if _number(stem) is not None else None)

    return Video(name, tuple(ordered), tuple(map(mask_of, ordered)), read)


def _number(stem: str) -> int | None:
    found = re.findall(r"\d+", stem)
    return int(found[-1]) if found else None


def _wanted(wanted: Sequence[str], found: Mapping[str, Video], files: list[str], read: Read) -> list[str]:
    """Return the names that `wanted` says, lists resolved, each once."""
    lists = {
        f.split("ImageSets/", 1)[1].removesuffix(".txt"): f for f in files if "ImageSets/" in f and f.endswith(".txt")
    }
    names: list[str] = []
    for word in wanted:
        inside = [f for name, f in lists.items() if word in (name, name.rsplit("/", 1)[-1])]
        if word in found:
            names.append(word)
        elif word.endswith(".txt") and Path(word).is_file():
            names += Path(word).read_text(encoding="utf-8").split()
        elif len(inside) == 1:
            names += read(inside[0]).decode("utf-8", "replace").split()
        elif len(inside) > 1:
            raise DataError(f"several lists are called '{word}': {', '.join(sorted(lists))}. Give the longer name.")
        else:
            raise DataError(str(unknown("sequence or list of sequences", word, [*found, *lists])))
    for name in names:
        if name not in found:
            raise DataError(str(unknown("sequence", name, found)))
    return list(dict.fromkeys(names))
