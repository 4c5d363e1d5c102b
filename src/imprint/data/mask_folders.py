"""Images with a mask each, from folders or a zip of folders, in the layouts that segmentation data come in.

Found in this order, below SRC:

- VOC: `JPEGImages/`, `SegmentationClass/` and lists of stems in `ImageSets/Segmentation/*.txt` (`SRC:train` picks one);
- side by side: `images/` and `masks/` (or `labels/`, `annotations/`, ...), the same path below each but for the
  suffix; `SRC:training` picks the folder of that name in both (ADE20K);
- CamVid: SRC is a folder of images, and its sibling of the same name with `annot`, `_labels`, `_masks` ... behind it
  holds the masks.

`FILE.zip:train` is the folder `train` inside the archive, read at random.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, DataError, nearest
from imprint.data.decode import decode, read_header
from imprint.data.sources import digest

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "leftImg8bit")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "gt", "SegmentationClass",
    "SegmentationClassAug", "SegmentationClassRaw",
)  # fmt: skip
SIBLING_ENDS = ("annot", "_annot", "_annotations", "_labels", "_label", "_masks", "_mask", "_gt", "labels", "masks")
MASK_ENDS = ("_L", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_annotation", "_segmentation")
"""What a mask's stem may have behind the image's."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".npy")
_MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".npy")
_LOSSY = (".jpg", ".jpeg", ".webp")
UNREADABLE = (BadImage, OSError, zipfile.BadZipFile, zlib.error)
"""What reading and decoding a damaged file raises."""


class Files(Protocol):
    """Files below a root: names with forward slashes, read at random from any thread."""

    where: str

    def names(self) -> list[str]:
        """Return all names, sorted."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""

    def mark(self, name: str) -> str:
        """Return a word that changes when the file does."""


class FolderFiles:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, os.fspath(root)

    def names(self) -> list[str]:
        """Return all names, sorted; hidden files and folders are left out."""
        found: list[str] = []
        for folder, inner, files in os.walk(self.root, followlinks=True):
            inner[:] = [name for name in inner if not name.startswith(".")]
            above = Path(folder).relative_to(self.root).as_posix()
            found += [name if above == "." else f"{above}/{name}" for name in files if not name.startswith(".")]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return (self.root / name).read_bytes()

    def mark(self, name: str) -> str:
        """Return size and time of change."""
        stat = os.stat(self.root / name)
        return f"{stat.st_size}.{stat.st_mtime_ns}"


class ZipFiles:
    """Members of a zip; the archive stays open and is closed with the object."""

    def __init__(self, path: Path) -> None:
        self.where = os.fspath(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"'{path}' cannot be read as a zip: {error}.") from error

    def names(self) -> list[str]:
        """Return all names, sorted; hidden ones and macOS's copies are left out."""
        plain = (name for name in self._zip.namelist() if not name.endswith("/"))
        return sorted(n for n in plain if not any(part.startswith((".", "__MACOSX")) for part in n.split("/")))

    def read(self, name: str) -> bytes:
        """Return the bytes of a member."""
        return self._zip.read(name)

    def mark(self, name: str) -> str:
        """Return size and checksum."""
        info = self._zip.getinfo(name)
        return f"{info.file_size}.{info.CRC:08x}"


@dataclass(frozen=True)
class Pair:
    """An image and its mask: names below the root of `files`."""

    files: Files
    image: str
    mask: str


class MaskedImages:
    """Images with a mask each, in the order of their names.

    Attributes:
        spec: the words it was opened with.
        channels: 3; images of any kind are read as RGB.
        settings: what else decides the labels (a palette's text), part of the fingerprint.
    """

    channels = 3

    def __init__(self, spec: str, pairs: Sequence[Pair], settings: str = "") -> None:
        self.spec, self.pairs, self.settings = spec, tuple(pairs), settings

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def name(self, i: int) -> str:
        """Return the path of image `i` below its root."""
        return self.pairs[i].image

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """Return image `i` as uint8 (H, W, 3).

        Raises:
            DataError: naming the file that cannot be read.
        """
        pair = self.pairs[i]
        try:
            pixels = decode(pair.files.read(pair.image), channels=3)
        except UNREADABLE as error:
            raise DataError(f"{self.spec}: the image '{pair.image}' cannot be read ({error}).") from error
        return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else np.asarray(pixels, dtype=np.uint8)

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of image `i` from its header."""
        pair = self.pairs[i]
        try:
            header = read_header(pair.files.read(pair.image))
        except UNREADABLE as error:
            raise DataError(f"{self.spec}: the image '{pair.image}' cannot be read ({error}).") from error
        return header.height, header.width

    def mask(self, i: int) -> npt.NDArray[Any]:
        """Return mask `i` as it is stored: label values (H, W) uint8 or uint16, or colours (H, W, 3) uint8.

        Raises:
            DataError: naming the file that cannot be read.
        """
        pair = self.pairs[i]
        try:
            return decode_mask(pair.files.read(pair.mask))
        except UNREADABLE as error:
            raise DataError(f"{self.spec}: the mask '{pair.mask}' cannot be read ({error}).") from error

    def subset(self, rows: Sequence[int]) -> MaskedImages:
        """Return some of the pairs, in the order given."""
        return MaskedImages(self.spec, [self.pairs[i] for i in rows], self.settings)

    @cached_property
    def fingerprint(self) -> str:
        """Digest over names, sizes and checksums (zip) or times of change (folders) of all files, and the settings."""
        words = [self.settings]
        for pair in self.pairs:
            words += [pair.image, pair.files.mark(pair.image), pair.mask, pair.files.mark(pair.mask)]
        return digest(*(word.encode("utf-8", "surrogateescape") for word in words))


def decode_mask(data: bytes) -> npt.NDArray[Any]:
    """Return label values (H, W) uint8 or uint16, or colours (H, W, 3) uint8.

    Palette images give their indices; the palette only says how viewers paint them (VOC, DAVIS).

    Raises:
        BadImage: for damaged files and kinds of pixels that hold no labels.
    """
    read_header(data)  # truncated, damaged and oversized files are told apart here
    if data[:6] == b"\x93NUMPY":
        array = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as opened:
                image: Any = opened
                if image.format == "JPEG":
                    raise BadImage("unsupported", "JPEG changes label values; store masks as PNG")
                if image.mode in ("RGBA", "CMYK", "YCbCr"):
                    image = image.convert("RGB")
                elif image.mode == "LA":
                    image = image.convert("L")
                array = np.array(image)
        except BadImage:
            raise
        except Exception as error:  # Pillow's decoders raise many types on damaged data
            raise BadImage("corrupt", str(error)) from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1 and array.size and 0 <= array.min() <= array.max() < 65536:
        array = array.astype(np.uint16)
    if array.ndim == 2 and array.dtype in (np.uint8, np.uint16):
        return array
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array
    raise BadImage("unsupported", f"a mask of {array.dtype} values and shape {array.shape}; store 8- or 16-bit labels")


def open_masks(spec: Any, settings: str = "") -> MaskedImages:
    """Open SRC (or several of them, joined) as images with masks.

    Raises:
        DataError: for a path or layout that is not there, images without a mask, and masks in a lossy format.
    """
    if isinstance(spec, MaskedImages):
        return spec
    if isinstance(spec, (list, tuple)):
        parts = [open_masks(part, settings) for part in spec]
        return MaskedImages(" + ".join(p.spec for p in parts), [pair for p in parts for pair in p.pairs], settings)
    text = os.fspath(spec)
    path, inside = _split(text)
    files: Files
    if path.is_dir():
        # Siblings of the folder are looked at too, so the root is its parent.
        root = path.resolve()
        wanted, split = root.name, inside
        files = FolderFiles(root)
        names = files.names()
        found = _in_folder(files, names, "", split, text) or _inside(files, names, split, text)
        if found is None and not split:
            for end in SIBLING_ENDS:
                if (root.parent / f"{wanted}{end}").is_dir():
                    found = _siblings(root, root.parent / f"{wanted}{end}", text)
                    break
            else:
                found = _named_siblings(root, text)
    else:
        files = ZipFiles(path)
        names = files.names()
        found = _in_folder(files, names, "", inside, text) or _inside(files, names, inside, text)
    if found is None:
        tops = sorted({name.split("/")[0] for name in names if "/" in name})
        near = nearest(inside, tops) if inside else None
        raise DataError(
            f"'{text}': no images with masks were found. Expected images/ beside masks/ (or labels/, annotations/), a "
            "folder X beside Xannot or X_masks, or VOC's JPEGImages/, SegmentationClass/ and ImageSets/. "
            + (f"Did you mean '{path}:{near}'?" if near else f"Folders there: {', '.join(tops[:8]) or 'none'}.")
        )
    if not found:
        raise DataError(f"'{text}' holds no image.")
    return MaskedImages(text, found, settings)


def _split(text: str) -> tuple[Path, str]:
    """Return the path that exists and the word behind its last colon, if any."""
    path = Path(text).expanduser()
    if path.exists():
        return path, ""
    head, _, inside = text.rpartition(":")
    path = Path(head).expanduser()
    if not head or not path.exists():
        raise DataError(f"'{text}' does not exist. Give a folder or FILE.zip[:FOLDER] of images and masks.")
    return path, inside.strip("/")


def _in_folder(files: Files, names: list[str], top: str, split: str, text: str) -> list[Pair] | None:
    """Return the pairs of VOC's layout or of two folders side by side below `top`, or None."""
    folders = {name[len(top) :].split("/")[0] for name in names if name.startswith(top) and "/" in name[len(top) :]}
    if {"JPEGImages", "SegmentationClass"} <= folders and "ImageSets" in folders:
        return _voc(files, names, top, split, text)
    images = next((f for f in IMAGE_FOLDERS if f in folders), None)
    masks = next((f for f in MASK_FOLDERS if f in folders), None)
    if images is None or masks is None:
        # An archive or a download often holds one folder with everything in it.
        only = next(iter(folders)) if len(folders) == 1 else None
        return None if only is None or only in IMAGE_FOLDERS else _in_folder(files, names, f"{top}{only}/", split, text)
    below = f"{split}/" if split else ""
    return _matched(files, names, f"{top}{images}/{below}", files, names, f"{top}{masks}/{below}", text)


def _voc(files: Files, names: list[str], top: str, split: str, text: str) -> list[Pair]:
    at = f"{top}ImageSets/Segmentation/"
    lists = {PurePosixPath(n).stem: n for n in names if n.startswith(at) and n.endswith(".txt")}
    if not lists:
        lists = {PurePosixPath(n).stem: n for n in names if n.startswith(f"{top}ImageSets/") and n.endswith(".txt")}
    if split not in lists:
        near = nearest(split, lists) if split else None
        raise DataError(
            f"'{text}' has the lists {', '.join(sorted(lists)) or '(none)'} in ImageSets; name one behind a colon, "
            f"such as '{files.where}:{near or next(iter(sorted(lists)), 'train')}'."
        )
    stems = [
        line.split()[0] for line in files.read(lists[split]).decode("utf-8", "replace").splitlines() if line.strip()
    ]
    images = {PurePosixPath(n).stem: n for n in names if n.startswith(f"{top}JPEGImages/")}
    masks = {PurePosixPath(n).stem: n for n in names if n.startswith(f"{top}SegmentationClass/")}
    absent = [stem for stem in stems if stem not in images or stem not in masks]
    if absent:
        kind = "image" if absent[0] not in images else "mask"
        raise DataError(
            f"'{text}': {len(absent)} of the {len(stems)} names in '{lists[split]}' lack an image or a mask; the "
            f"first, '{absent[0]}', has no {kind}."
        )
    return [Pair(files, images[stem], masks[stem]) for stem in stems]


def _siblings(images: Path, masks: Path, text: str) -> list[Pair]:
    parent = FolderFiles(images.parent)
    picture_names = [f"{images.name}/{name}" for name in FolderFiles(images).names()]
    mask_names = [f"{masks.name}/{name}" for name in FolderFiles(masks).names()]
    return _matched(parent, picture_names, f"{images.name}/", parent, mask_names, f"{masks.name}/", text)


def _named_siblings(images: Path, text: str) -> list[Pair] | None:
    """Return the pairs when SRC is the `images` folder itself."""
    masks = next((images.parent / f for f in MASK_FOLDERS if (images.parent / f).is_dir()), None)
    return _siblings(images, masks, text) if images.name in IMAGE_FOLDERS and masks is not None else None


def _inside(files: Files, names: list[str], inside: str, text: str) -> list[Pair] | None:
    """Return the pairs of folder `inside` and its sibling, or of the layouts below it."""
    if not inside:
        return None
    folders = sorted({name.rpartition("/")[0] for name in names})
    at = next((f for f in folders if f == inside or f.endswith(f"/{inside}")), None)
    if at is not None:
        for end in SIBLING_ENDS:
            if f"{at}{end}" in folders:
                return _matched(files, names, f"{at}/", files, names, f"{at}{end}/", text)
    return _in_folder(files, names, f"{inside}/", "", text)


def _matched(
    files: Files, names: list[str], images_at: str, mask_files: Files, mask_names: list[str], masks_at: str, text: str
) -> list[Pair]:
    """Pair images with masks by their path without suffix below the two folders."""
    images = _stems(names, images_at, _IMAGE_SUFFIXES)
    masks = _stems(mask_names, masks_at, _MASK_SUFFIXES)
    ends = "|".join(map(re.escape, MASK_ENDS))
    bare = {re.sub(f"({ends})$", "", stem): name for stem, name in masks.items()}
    found = {stem: masks.get(stem) or bare.get(stem) for stem in images}
    absent = [images[stem] for stem, mask in found.items() if mask is None]
    if absent:
        lossy = _stems(mask_names, masks_at, _LOSSY)
        why = (
            " There are JPEG or WebP files: lossy compression changes label values, so masks must be PNG."
            if lossy
            else " A mask has the image's name but for the suffix."
        )
        raise DataError(
            f"'{text}': {len(absent)} of {len(images)} images have no mask in '{masks_at}'; the first is '{absent[0]}'."
            + why
        )
    return [Pair(files, images[stem], str(found[stem])) for stem in images]


def _stems(names: list[str], at: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Return names by their path below `at` without the suffix."""
    below = (name for name in names if name.startswith(at) and name.lower().endswith(suffixes))
    return {name[len(at) :].rpartition(".")[0]: name for name in below}
