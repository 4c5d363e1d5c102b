"""Twenty real photographs that ship inside scikit-image and scikit-learn, cut into tiles: data without a download.

Astronaut, cat, coffee, motorcycle, rocket, temple and flower; coins, clock, page and printed text; grass, gravel and
brick; the moon, a deep field of the Hubble telescope; retina, cell and tissue. The files are read where the packages
keep them, so neither a network nor a writable place is needed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError, unknown
from imprint.data.headers import Layout
from imprint.data.sources import Sample, Source, digest

PHOTOGRAPHS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cell": ("skimage", "data/cell.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "clock": ("skimage", "data/clock_motion.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "page": ("skimage", "data/page.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "text": ("skimage", "data/text.png"),
}
"""Photograph by class name: the package that ships it, and where."""

LONGEST = 512
"""Larger photographs are reduced to this longer side, so that none outweighs the others."""

TRAIN_SHARE = 2 / 3
"""The left part of every photograph is for training, the right for testing."""

_FLAT = 3.0  # tiles with a smaller standard deviation (grey levels) show nothing: black corners, clear sky

Split = Literal["train", "test"]


@dataclass(frozen=True)
class _Tile:
    photo: int
    top: int
    left: int


class PhotoTiles(Source):
    """Square tiles of the photographs; the label is the photograph, so nearest neighbours have a meaning."""

    def __init__(self, split: Split, tile: int, stride: int) -> None:
        self.spec = f"photos:{split}"
        self.tile = tile
        loaded = {name: _load(package, path) for name, (package, path) in PHOTOGRAPHS.items()}
        photos = {name: photo for name, photo in loaded.items() if photo is not None}
        if len(photos) < 10:
            raise DataError("the bundled photographs are missing. Install them: pip install scikit-image scikit-learn")
        self.classes = tuple(photos)
        self._photos = list(photos.values())
        self._tiles = [
            _Tile(k, top, left)
            for k, photo in enumerate(self._photos)
            for top in range(0, photo.shape[0] - tile + 1, stride)
            for left in _columns(photo.shape[1], tile, stride, split)
            if float(photo[top : top + tile, left : left + tile].std()) >= _FLAT
        ]
        self.labels = np.array([t.photo for t in self._tiles], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._tiles)

    def read(self, i: int) -> Sample:
        """Return tile `i`, uint8 (tile, tile, 3)."""
        t = self._tiles[i]
        return np.ascontiguousarray(self._photos[t.photo][t.top : t.top + self.tile, t.left : t.left + self.tile])

    def name(self, i: int) -> str:
        """Return the photograph and the tile's place in it, in pixels from the top left."""
        t = self._tiles[i]
        return f"{self.classes[t.photo]}@{t.top},{t.left}"

    def box(self, i: int) -> tuple[str, int, int, int, int]:
        """Return (photograph, top, left, bottom, right) of tile `i` in pixels of the reduced photograph."""
        t = self._tiles[i]
        return self.classes[t.photo], t.top, t.left, t.top + self.tile, t.left + self.tile

    @cached_property
    def layout(self) -> Layout:
        """Three channels of 8 bits; grey photographs have them equal."""
        return Layout(3, np.dtype(np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the tiles' places and the photographs."""
        return digest(repr(self._tiles), str(self.tile), *self._photos)


def photos(split: str = "train", tile: int = 64, stride: int | None = None) -> PhotoTiles:
    """Open the bundled photographs as tiles.

    Training tiles lie in the left two thirds of each photograph, test tiles in the right third, with a gap of an
    eighth of a tile between them. `stride` is half a tile by default, so neighbours within a split overlap. Tiles that
    show nothing (standard deviation below three grey levels) are left out.

    Args:
        split: `train` or `test`.
        tile: side of a tile in pixels, 8 to 128.
        stride: distance between tiles in pixels.

    Raises:
        ConfigError: for another split.
        DataError: when `tile` is out of range or the packages that ship the photographs are missing.
    """
    if split not in ("train", "test"):
        raise unknown("split of photos", split, ("train", "test"))
    if not 8 <= tile <= 128:
        raise DataError(f"photos: tiles of {tile} pixels do not fit the photographs; choose 8 to 128.")
    return PhotoTiles("train" if split == "train" else "test", tile, stride or tile // 2)


def _columns(width: int, tile: int, stride: int, split: Split) -> range:
    border = int(width * TRAIN_SHARE)
    if split == "train":
        return range(0, border - tile + 1, stride)
    return range(border + tile // 8, width - tile + 1, stride)


def _load(package: str, path: str) -> npt.NDArray[Any] | None:
    from PIL import Image

    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        file = Path(folder, path)
        if file.is_file():
            with Image.open(file) as image:
                photo = np.asarray(image.convert("RGB"))
            return _reduced(photo)
    return None


def _reduced(photo: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import cv2

    height, width = photo.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return photo
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))
