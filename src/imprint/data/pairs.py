"""Images with captions: a file of pairs and the images it names, as one source that groups captions by image.

N images, M captions, B of a batch. Captions of one image stand together, in the order of the file; images in the order
of their first caption.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key, uniforms
from imprint.data.caption_files import SUFFIXES, Columns, Pair, read_pairs
from imprint.data.combine import Subset
from imprint.data.compact import Names
from imprint.data.filelist import ListSource
from imprint.data.folder import FolderSource
from imprint.data.headers import Layout
from imprint.data.pair_shards import captioned, captions_of_shard
from imprint.data.patterns import expanded
from imprint.data.shards import ShardSource, open_shards
from imprint.data.sources import Sample, Source, digest

Index = npt.NDArray[np.int64]

BESIDE = ("images", "Images", "images.zip", "Images.zip", "images.tar")
"""Where images are looked for beside the file of captions, before its own folder."""
_NAMES = ("captions", "metadata", "results", "pairs")
_NUMBERED = re.compile(r"#\d+$")  # Flickr8k.token.txt: name.jpg#0, name.jpg#1


@dataclass(frozen=True)
class Counted:
    """What the file of pairs held that is not in the source.

    Attributes:
        empty: captions without a word.
        missing: images that the file names and that are not there.
        missing_captions: captions of those.
        bare: images left without a caption: theirs were all empty or, in shards, there was none.
    """

    empty: int = 0
    missing: int = 0
    missing_captions: int = 0
    bare: int = 0


class Captions(Sequence[str]):
    """M captions as one blob: a million take about 60 MB."""

    def __init__(self, packed: Names) -> None:
        self.packed = packed

    def __len__(self) -> int:
        """Return M."""
        return len(self.packed)

    def __getitem__(self, i: Any) -> Any:
        """Return caption `i`, or a list of them for a slice."""
        if isinstance(i, slice):
            return [text.decode() for text in self.packed[i]]
        if not -len(self) <= i < len(self):  # the protocol of sequences ends loops by this
            raise IndexError(f"caption {i} of {len(self)}")
        return str(self.packed[int(i) % len(self)].decode())


class PairSource(Source):
    """The images of a set of pairs, each once, with their captions.

    Attributes:
        images: the same images without captions; features of them are cached whatever their captions say.
        captions: all captions, those of one image together.
        starts: int64 (N + 1,), captions starts[i] to starts[i + 1] belong to image i.
        counted: what was left out of the file.
    """

    def __init__(
        self, images: Source, captions: Captions, starts: Index, spec: str, counted: Counted | None = None
    ) -> None:
        if len(starts) != len(images) + 1 or int(starts[-1]) != len(captions):
            raise DataError(f"'{spec}': {len(captions)} captions do not fit {len(images)} images.")
        self.images, self.captions, self.starts, self.spec = images, captions, starts, spec
        self.counted = counted or Counted()

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def read(self, i: int) -> Sample:
        """Return image `i`."""
        return self.images.read(i)

    def name(self, i: int) -> str:
        """Return the name of image `i`."""
        return self.images.name(i)

    @cached_property
    def layout(self) -> Layout:
        """That of the images."""
        return self.images.layout

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the images' fingerprint, every caption, and which image it belongs to."""
        packed = self.captions.packed
        return digest(self.images.fingerprint, packed.blob, packed.offsets, self.starts)

    @cached_property
    def caption_image(self) -> Index:
        """Image of every caption, int64 (M,), ascending."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.starts))

    def captions_of(self, i: int) -> list[str]:
        """Return the captions of image `i`."""
        return list(self.captions[int(self.starts[i]) : int(self.starts[i + 1])])

    def drawn(self, seed: int, epoch: int, index_B: npt.ArrayLike) -> Index:
        """Return one caption per image, int64 (B,) positions in `captions`: a pure function of seed, epoch and image.

        Every caption of an image has the same chance, so that training sees another one from epoch to epoch whatever
        the number of workers.
        """
        index = np.asarray(index_B, dtype=np.int64)
        first, count = self.starts[index], np.diff(self.starts)[index]
        place = uniforms(key(seed, epoch, index, "caption"), 1)[..., 0]
        return np.asarray(first + np.minimum((place * count).astype(np.int64), count - 1), dtype=np.int64)

    def subset(self, indices: npt.ArrayLike) -> PairSource:
        """Return the images at `indices`, in that order, with their captions."""
        images = Subset(self.images, indices)
        count = np.diff(self.starts)[images.indices]
        starts = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        rows = np.arange(int(starts[-1])) + np.repeat(self.starts[:-1][images.indices] - starts[:-1], count)
        captions = Captions(Names.of(self.captions.packed[int(row)] for row in rows))
        return PairSource(images, captions, starts, f"{self.spec}[{len(images)} of {len(self)}]", self.counted)

    def split(self, share: float, seed: int = 0) -> tuple[PairSource, PairSource]:
        """Return (the rest, `share` of the images), so that no image is on both sides; the draw is keyed by the seed.

        Raises:
            ConfigError: for a share that leaves a side empty.
        """
        held = round(share * len(self))
        if not 0 < held < len(self):
            raise ConfigError(f"a share of {share} of {len(self)} images leaves one side of the split empty.")
        order = np.argsort(key(seed, "split", np.arange(len(self))), kind="stable")
        return self.subset(np.sort(order[held:])), self.subset(np.sort(order[:held]))


def open_pairs(
    spec: str | os.PathLike[str] | PairSource,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    drop_missing: bool = False,
) -> PairSource:
    """Open images with captions.

    `FILE` or `FILE:IMAGES`: FILE is .csv, .tsv, .txt, .json (COCO's captions) or .jsonl, see `caption_files`; IMAGES is
    a folder, or .zip or .tar files, and relative to FILE's folder when it is not found otherwise. Without it images are
    looked for in `images`, `images.zip` and the like beside FILE, then beside FILE itself. A folder with one such file
    (`captions.*`, `metadata.*`, `results.*`, `pairs.*`) stands for it. Shards (.tar, .zip, or a pattern of them) may
    hold the captions beside their images, see `pair_shards`.

    Args:
        spec: see above; a PairSource passes through.
        image_column: name, or number from 0, of the column with image files; None finds it.
        caption_column: the same of the captions.
        drop_missing: leave out images that are not there, instead of refusing the file.

    Raises:
        DataError: for files that cannot be read, images that are missing, or no pair at all.
        ConfigError: for words that name no pairs, or columns that are not there.
    """
    if isinstance(spec, PairSource):
        return spec
    text = os.fspath(spec)
    if _alone(text):
        return _open_captioned(text, caption_column)
    file, place = located(text)
    rows, empty = grouped(read_pairs(file, Columns(image_column, caption_column)))
    if not rows:
        raise DataError(f"'{text}' holds no pair of an image and a caption ({empty} captions are empty).")
    names = list(rows)
    images, kept = _images(names, file, place)
    if len(kept) < len(names):
        found = set(kept)
        lost = [name for i, name in enumerate(names) if i not in found]
        if not drop_missing or not kept:
            shown = ", ".join(f"'{name}'" for name in lost[:5]) + (", ..." if len(lost) > 5 else "")
            raise DataError(
                f"{len(lost)} of {len(names)} images that '{file}' names are not in '{images.spec}': {shown}. Say "
                f"where they are as {file.name}:IMAGES (a folder or a .zip), or leave them out by --drop-missing (in "
                "training: a larger --data.bad-limit)."
            )
    else:
        lost = []
    # Images whose captions are all empty are there, but no pair.
    full = [place for place, i in enumerate(kept) if rows[names[i]]]
    captions = [rows[names[kept[place]]] for place in full]
    if not full:
        raise DataError(f"'{text}': all captions of the images that are there are empty.")
    counts = [len(several) for several in captions]
    counted = Counted(
        empty, len(lost), sum(len(rows[name]) for name in lost), sum(not rows[names[i]] for i in kept)
    )  # fmt: skip
    part = images.subset(np.array(full)) if len(full) < len(images) else images
    packed = Names.of(caption.encode() for several in captions for caption in several)
    return PairSource(part, Captions(packed), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), text, counted)


def names_pairs(spec: Any) -> bool:
    """Tell whether words name a file of pairs rather than images alone (a list with `path` and `label` does not)."""
    if isinstance(spec, PairSource):
        return True
    if not isinstance(spec, (str, os.PathLike)):
        return False
    text = os.fspath(spec)
    if _alone(text):
        return bool(captions_of_shard(expanded(text)[0]))
    try:
        file, place = located(text)
    except (ConfigError, DataError):
        return False
    if place is not None or file.suffix.lower() in (".tsv", ".json", ".jsonl") or Path(text).is_dir():
        return True
    from imprint.data.caption_files import has_header

    return has_header(file)


def located(text: str) -> tuple[Path, str | None]:
    """Return (file of captions, where images are or None) of `FILE`, `FILE:IMAGES` or a folder.

    Raises:
        ConfigError: for words that name no file of captions.
        DataError: for a folder without one, or with several.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.stem.lower() in _NAMES]
        if len(found) != 1:
            known = ", ".join(p.name for p in found) or "none"
            raise DataError(
                f"the folder '{text}' should hold one file of captions (captions.csv, metadata.jsonl, ...) and holds "
                f"{known}; give the file itself, as FILE or FILE:IMAGES."
            )
        return found[0], None
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return path, None
    for at in (m.start() for m in re.finditer(":", text)):
        head = Path(text[:at]).expanduser()
        if head.is_file() and head.suffix.lower() in SUFFIXES:
            return head, text[at + 1 :]
    raise ConfigError(
        f"'{text}' names no pairs of images and captions. Give FILE or FILE:IMAGES, where FILE exists and ends in "
        f"{', '.join(SUFFIXES)}, and IMAGES is a folder or a .zip; or shards (.tar, .zip) with captions beside images."
    )


def grouped(pairs: Iterator[Pair]) -> tuple[dict[str, list[str]], int]:
    """Return captions by image, white space collapsed, in the order of the file, and how many captions were empty."""
    rows: dict[str, list[str]] = {}
    empty = 0
    for image, caption in pairs:
        several = rows.setdefault(_NUMBERED.sub("", image), [])
        if words := " ".join(caption.split()):
            several.append(words)
        else:
            empty += 1
    return rows, empty


def _open_captioned(text: str, column: str | None) -> PairSource:
    """Open shards with the captions inside."""
    shards = open_shards(text)
    kept, captions, empty, bare = captioned(shards, column)
    starts = np.concatenate([[0], np.cumsum([len(several) for several in captions])]).astype(np.int64)
    packed = Names.of(caption.encode() for several in captions for caption in several)
    images = Subset(shards, np.array(kept, dtype=np.int64))
    return PairSource(images, Captions(packed), starts, text, Counted(empty=empty, bare=bare))


def _images(names: list[str], file: Path, place: str | None) -> tuple[Source, list[int]]:
    """Return the images that are there, and which of `names` each of them is."""
    beside = file.parent
    if all(os.path.isabs(name) for name in names[:8]) and place is None:
        return _listed(names, Path("/"))
    if place is None:
        found = next((beside / word for word in BESIDE if (beside / word).exists()), beside)
        place = os.fspath(found)
    elif not Path(place).expanduser().exists():
        try:
            expanded(place)  # a pattern of shards that counts from here
        except DataError:
            place = os.fspath(beside / place)  # from the file of captions
            if not _is_shards(place) and not Path(place).exists():
                raise DataError(f"there is no folder or file '{place}' with the images of '{file}'.") from None
    if _is_shards(place):
        shards = open_shards(place)
        return _matched(names, shards, _members(shards))
    folder = FolderSource(Path(place).expanduser())
    return _matched(names, folder, (folder.name(i) for i in range(len(folder))))


def _is_shards(place: str) -> bool:
    return Path(place).suffix.lower() in (".zip", ".tar")


def _alone(text: str) -> bool:
    """Tell whether words name shards and no file of captions."""
    try:
        return _is_shards(text) and not located(text)
    except ConfigError:
        return True


def _members(shards: ShardSource) -> Iterator[str]:
    return (os.fsdecode(name) for shard in shards.shards for name in shard.names)


def _matched(names: list[str], source: Source, members: Iterator[str]) -> tuple[Source, list[int]]:
    """Match names by the whole path, else by the last part of it where only one member has that."""
    whole: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, member in enumerate(members):
        whole[member] = i
        base = member.rpartition("/")[2]
        last[base] = -1 if base in last else i
    picked: list[int] = []
    kept: list[int] = []
    for row, name in enumerate(names):
        plain = os.path.normpath(name)
        hit = whole.get(plain, -1)
        if hit < 0:
            hit = last.get(plain.rpartition("/")[2], -1)
        if hit >= 0:
            picked.append(hit)
            kept.append(row)
    return Subset(source, np.array(picked, dtype=np.int64)), kept


def _listed(names: list[str], base: Path) -> tuple[Source, list[int]]:
    """Return files by their paths; each folder is listed once."""
    there: dict[str, set[str]] = {}
    kept: list[int] = []
    for row, name in enumerate(names):
        folder, _, last = name.rpartition("/")
        if folder not in there:
            try:
                there[folder] = set(os.listdir(base / folder))
            except OSError:
                there[folder] = set()
        if last in there[folder]:
            kept.append(row)
    packed = Names.of(os.fsencode(names[row]) for row in kept)
    return ListSource(packed, None, base=base, spec="the absolute paths of the list"), kept
