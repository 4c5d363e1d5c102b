"""Images that are in memory already, or in `.npy` and `.npz` files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, DataError
from imprint.data.headers import Layout
from imprint.data.labels import as_numpy, read_labels
from imprint.data.sources import Sample, Source, digest, spread

Order = Literal["hwc", "chw"]
_MOST_CHANNELS = 16  # an axis this short counts as channels when the order is not given


class ArraySource(Source):
    """Images as one array (N, H, W, C), (N, C, H, W) or (N, H, W), or as a list of arrays of different sizes.

    uint8 and uint16 are taken as they are; bool becomes 0 and 255; floats lie in [0, 1] and become uint8, rounded,
    when they are read. Torch tensors are taken as their numpy view. Nothing is copied here, so a memory-mapped `.npy`
    larger than memory works.

    Args:
        images: the images.
        labels: int class of each image, or names, or None.
        classes: names of the int labels; by default the numbers themselves.
        order: where the channels are; by default the last axis when it has at most 16 entries, else the first.
        name: what the source is called in messages.

    Raises:
        DataError: when shapes, types, ranges or the number of labels do not fit.
    """

    def __init__(
        self,
        images: Any,
        labels: npt.ArrayLike | None = None,
        *,
        classes: Sequence[str] = (),
        order: Order | None = None,
        name: str = "arrays",
    ) -> None:
        self.spec = name
        whole = not isinstance(images, (list, tuple))
        stack: Any = as_numpy(images) if whole else [as_numpy(x) for x in images]
        self._images = stack
        if whole and stack.ndim not in (3, 4):
            raise DataError(
                f"{name}: images have the shape {stack.shape}; expected (N, H, W, C), (N, C, H, W) or (N, H, W)."
            )
        if len(self._images) == 0:
            raise DataError(f"{name}: there are no images.")
        self._order: Order = order or _order(self._images[0].shape, name)
        for i in spread(len(self), 64):
            self._check(int(i))
        self.classes, self.labels = read_labels(labels, len(self), name, classes)

    def _check(self, i: int) -> None:
        image = self._images[i]
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise DataError(f"{self.spec}: image {i} has the shape {image.shape}; expected (H, W, C) or (C, H, W).")
        kind = image.dtype
        if kind in (np.uint8, np.uint16) or kind == np.bool_:
            return
        if not np.issubdtype(kind, np.floating):
            raise DataError(f"{self.spec}: images are {kind}. Give uint8, uint16, or floats in [0, 1].")
        low, high = float(image.min()), float(image.max())
        if np.isfinite(low) and np.isfinite(high) and not (low >= 0.0 and high <= 1.0):
            raise DataError(
                f"{self.spec}: image {i} is {kind} with values in [{low:g}, {high:g}]; floats must lie in [0, 1]. "
                "Undo the normalisation, or convert to uint8."
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def read(self, i: int) -> Sample:
        """Return image `i` as a contiguous (H, W, C) array."""
        image = np.asarray(self._images[i])
        if image.ndim == 2:
            image = image[:, :, None]
        elif self._order == "chw":
            image = image.transpose(1, 2, 0)
        if image.dtype == np.bool_:
            image = image.astype(np.uint8) * np.uint8(255)
        elif np.issubdtype(image.dtype, np.floating):
            if not np.isfinite(image).all():
                raise BadImage("corrupt", "values that are not finite")
            image = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
        return np.ascontiguousarray(image)

    def name(self, i: int) -> str:
        """Return the source's name and the position."""
        return f"{self.spec}[{i}]"

    @cached_property
    def layout(self) -> Layout:
        """Channels and depth of the widest of up to 64 images."""
        samples = [self.read_layout(int(i)) for i in spread(len(self), 64)]
        deep = any(s.dtype == np.uint16 for s in samples)
        return Layout(max(s.channels for s in samples), np.dtype(np.uint16 if deep else np.uint8))

    def read_layout(self, i: int) -> Layout:
        """Return the layout of image `i` as `read` delivers it."""
        image = self._images[i]
        channels = 1 if image.ndim == 2 else image.shape[2] if self._order == "hwc" else image.shape[0]
        return Layout(int(channels), np.dtype(np.uint16 if image.dtype == np.uint16 else np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the number of images and the pixels of up to 1,024 of them spread evenly."""
        picked = [np.ascontiguousarray(self._images[int(i)]) for i in spread(len(self), 1024)]
        return digest(f"{len(self)} {self._order}", *picked)


def open_arrays(path: Path) -> ArraySource:
    """Open a `.npy` (memory-mapped) or `.npz` file of images.

    In a `.npz`, images are its one array with three axes or more, or the one called `images`, `x`, `x_train`, `data`
    or `arr_0`; labels are an array called `labels`, `y`, `y_train`, `targets` or `arr_1` of the same length.

    Raises:
        DataError: when the file is damaged or no array in it can be images.
    """
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return ArraySource(loaded, name=os.fspath(path))
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"'{path}' cannot be read as numpy arrays: {error}") from error
    candidates = [name for name, array in arrays.items() if array.ndim >= 3]
    wanted = [n for n in ("images", "x", "x_train", "data", "arr_0") if n in candidates] or candidates
    if not candidates or (len(wanted) > 1 and wanted is candidates):
        raise DataError(f"'{path}': cannot tell which array holds the images among {sorted(arrays)}. Call it 'images'.")
    images = arrays[wanted[0]]
    labels = next(
        (arrays[n] for n in ("labels", "y", "y_train", "targets", "arr_1") if n in arrays and arrays[n].ndim == 1), None
    )
    names = arrays.get("classes")
    classes = () if names is None else tuple(x.decode() if isinstance(x, bytes) else str(x) for x in names.tolist())
    return ArraySource(images, labels, classes=classes, name=os.fspath(path))


def _order(shape: tuple[int, ...], name: str) -> Order:
    if len(shape) == 2 or shape[-1] <= _MOST_CHANNELS:
        return "hwc"
    if len(shape) == 3 and shape[0] <= _MOST_CHANNELS:
        return "chw"
    raise DataError(
        f"{name}: images of shape {shape} have no axis of at most {_MOST_CHANNELS} channels. Say where the channels "
        "are with order='hwc' or order='chw'."
    )
