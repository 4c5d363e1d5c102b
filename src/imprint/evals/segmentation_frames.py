"""How images and masks come before the encoder: whole or in windows, and as random crops for training.

Everything random is a function of (seed, epoch, image). Shapes: H x W pixels of a frame, B tiles.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from imprint.core.rng import key, uniforms
from imprint.data.mask_folders import MaskedImages
from imprint.evals.segmentation_labels import Labels, LabelTable
from imprint.ops.confusion import IGNORED

Pixels = npt.NDArray[np.uint8]
CROP_TRIES = 10
CLASS_SHARE = 0.75
"""A crop in which one class has more of the pixels is drawn again, up to CROP_TRIES times (mmsegmentation)."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Frames:
    """Sizes at which an encoder sees images.

    Attributes:
        multiple: sides of whole images become the nearest multiples of it.
        short: shorter side; 0 keeps the image's own.
        window: side of square windows that cover the image; 0 for whole images.
        stride: distance of windows.
    """

    multiple: int
    short: int = 0
    window: int = 0
    stride: int = 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) of the frame of an image."""
        scale = self.short / min(height, width) if self.short else 1.0
        if self.window:
            scale = max(scale, self.window / min(height, width))
            return max(self.window, round(height * scale)), max(self.window, round(width * scale))
        step = self.multiple
        return max(1, round(height * scale / step)) * step, max(1, round(width * scale / step)) * step

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Return (top, left, height, width) of the windows of a frame; the last of a row is flush with the edge."""
        if not self.window:
            return [(0, 0, height, width)]
        side = self.window
        return [(y, x, side, side) for y in self._starts(height) for x in self._starts(width)]

    def _starts(self, length: int) -> list[int]:
        last = length - self.window
        return [*range(0, last, self.stride), last]


@dataclass(frozen=True)
class Tile:
    """A window of a frame of an image.

    Attributes:
        image: position in the source.
        frame: (H, W).
        box: (top, left, height, width).
    """

    image: int
    frame: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the tile."""
        return self.box[2], self.box[3]


def tiles_of(frames: Frames, sizes: Sequence[tuple[int, int]], rows: Iterable[int]) -> list[Tile]:
    """Return the tiles of some images, image by image."""
    found = []
    for i in rows:
        frame = frames.size(*sizes[i])
        found += [Tile(i, frame, box) for box in frames.boxes(*frame)]
    return found


def framed(image: Pixels, frame: tuple[int, int]) -> Pixels:
    """Return the image at the frame's size: area average where it shrinks, else bilinear."""
    if image.shape[:2] == frame:
        return image
    shrinks = frame[0] <= image.shape[0] and frame[1] <= image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, frame[::-1], interpolation=how), dtype=np.uint8)


def framed_labels(labels: Labels, frame: tuple[int, int]) -> Labels:
    """Return the labels at the frame's size, nearest neighbour."""
    if labels.shape == frame:
        return labels
    return np.asarray(cv2.resize(labels, frame[::-1], interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.int16)


def cut(array: npt.NDArray[Result], box: tuple[int, int, int, int]) -> npt.NDArray[Result]:  # type: ignore[type-var]
    """Return the part of an array in a box."""
    top, left, height, width = box
    return array[top : top + height, left : left + width]


def tile_image(source: MaskedImages, tile: Tile) -> Pixels:
    """Return the pixels of a tile."""
    return cut(framed(source.image(tile.image), tile.frame), tile.box)


def tile_labels(source: MaskedImages, table: LabelTable, tile: Tile) -> Labels:
    """Return the labels of a tile."""
    return cut(framed_labels(table.labels(source.mask(tile.image)), tile.frame), tile.box)


def random_crop(
    image: Pixels,
    labels: Labels,
    frames: Frames,
    crop: int,
    scale: tuple[float, float],
    fill: Sequence[int],
    draw: npt.NDArray[np.uint64],
) -> tuple[Pixels, Labels]:
    """Return an image and its labels scaled, cropped to a square and flipped at random, as mmsegmentation trains.

    The frame's size times a uniform factor, a crop that no class fills by more than CLASS_SHARE if ten tries find one,
    a horizontal flip with probability 1/2; what lies outside of the image has the colour `fill` and is ignored.

    Args:
        image: uint8 (H, W, 3).
        labels: int16 (H, W).
        frames: for the size that the factor multiplies.
        crop: side.
        scale: smallest and largest factor.
        fill: colour outside.
        draw: key of this crop.
    """
    chance = uniforms(draw, 2 + 2 * CROP_TRIES)
    short = frames.short or min(image.shape[:2])
    factor = short / min(image.shape[:2]) * (scale[0] + (scale[1] - scale[0]) * chance[0])
    size = max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))
    image, labels = framed(image, size), framed_labels(labels, size)
    below, right = max(0, crop - size[0]), max(0, crop - size[1])
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=list(fill))  # type: ignore
        labels = np.pad(labels, ((0, below), (0, right)), constant_values=IGNORED)
    for attempt in range(CROP_TRIES):
        top = int(chance[2 + 2 * attempt] * (image.shape[0] - crop + 1))
        left = int(chance[3 + 2 * attempt] * (image.shape[1] - crop + 1))
        part = cut(labels, (top, left, crop, crop))
        counts = np.bincount(part[part != IGNORED])
        if (counts > 0).sum() > 1 and counts.max() < CLASS_SHARE * counts.sum():
            break
    image = cut(image, (top, left, crop, crop))
    if chance[1] < 0.5:
        image, part = image[:, ::-1], part[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(part)


def crop_key(seed: int, epoch: int, image: int) -> npt.NDArray[np.uint64]:
    """Return the key of an image's crop in an epoch."""
    return key(seed, "segmentation-crop", epoch, image)


def shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of an epoch."""
    return np.argsort(uniforms(key(seed, "segmentation-order", epoch, np.arange(count)), 1)[:, 0], kind="stable")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None, depth: int = 2
) -> Iterator[Result]:
    """Yield work(item) in order, with up to `depth` times the threads' number of results made ahead."""
    threads = workers or min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
