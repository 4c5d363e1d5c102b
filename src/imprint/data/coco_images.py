"""Where the images of an annotation file are: a folder, or a zip read at random."""

from __future__ import annotations

import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from imprint.core.errors import DataError


class ImageStore(ABC):
    """Encoded images by name.

    Attributes:
        where: path of the folder or zip, for messages.
    """

    where: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the encoded file."""

    @abstractmethod
    def mark(self, name: str) -> str | None:
        """Return a word that changes when the file does, or None when there is no such file."""


class FolderStore(ImageStore):
    """Files under a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    def read(self, name: str) -> bytes:
        """Return the encoded file."""
        return (self.folder / name).read_bytes()

    def mark(self, name: str) -> str | None:
        """Return size and time of change, or None when there is no such file."""
        try:
            stat = os.stat(self.folder / name)
        except OSError:
            return None
        return f"{stat.st_size}.{stat.st_mtime_ns}"


class ZipStore(ImageStore):
    """Members of a zip, wherever in it their folder is; threads take turns."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a readable zip ({error}).") from error
        members = [info for info in self.archive.infolist() if not info.is_dir()]
        self.members = {Path(info.filename).name: info for info in members} | {i.filename: i for i in members}
        self.lock = threading.Lock()

    def read(self, name: str) -> bytes:
        """Return the encoded file."""
        with self.lock:
            return self.archive.read(self.members[name])

    def mark(self, name: str) -> str | None:
        """Return size and checksum, or None when there is no such member."""
        info = self.members.get(name)
        return None if info is None else f"{info.file_size}.{info.CRC:08x}"


def find_images(annotations: Path, names: Sequence[str], given: str | Path | None) -> ImageStore:
    """Return the folder or zip that holds all the named images.

    Without `given`, looked at are, beside the annotation file: its folder, `images/`, a folder or zip of the
    annotations' own name (`val.json`: `val/`, `val.zip`), `images.zip`, and every other zip; and, for annotations in a
    folder of their own (`annotations/instances_val2017.json`), the same one folder up, with `val2017`.

    Raises:
        DataError: naming the first image that is missing, and where it was looked for.
    """
    places = [Path(given)] if given is not None else _places(annotations)
    fewest: tuple[int, str, Path] | None = None
    for place in places:
        if not place.exists():
            continue
        store = FolderStore(place) if place.is_dir() else ZipStore(place)
        missing = [name for name in names if store.mark(name) is None]
        if not missing:
            return store
        if fewest is None or len(missing) < fewest[0]:
            fewest = len(missing), missing[0], place
    if given is not None and fewest is None:
        raise DataError(f"images '{given}': there is no such folder or zip.")
    if fewest is None:
        raise DataError(f"{annotations}: no images beside it; say where they are with --images FOLDER or FILE.zip.")
    count, first, place = fewest
    looked = "" if given is not None else " Say where they are with --images FOLDER or FILE.zip."
    raise DataError(f"{annotations}: {count} of {len(names)} images are missing in '{place}', first '{first}'.{looked}")


def _places(annotations: Path) -> list[Path]:
    here, stem = annotations.parent, annotations.stem
    last = stem.split("_")[-1]
    places = [here, here / "images"]
    for folder in (here, here.parent):
        places += [folder / word for word in dict.fromkeys((stem, last))]
        places += [folder / "images" / word for word in dict.fromkeys((stem, last))]
        places += [folder / f"{word}.zip" for word in dict.fromkeys((stem, last, "images"))]
    places += [here.parent / "images", *sorted(here.glob("*.zip"))]
    return list(dict.fromkeys(places))
