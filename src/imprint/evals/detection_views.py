"""Images and their objects as a detector gets them: resized, flipped, cut, with masks drawn at that size.

All is drawn from counter-based keys: the view of image i in a step depends on (seed, step, i) alone.

Shapes: C channels, H x W pixels, N objects, 4 = (x1, y1, x2, y2) in pixels of the view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key, permuted, uniforms
from imprint.data.coco import CocoData, Objects, Segmentation

LEAST_SIDE = 1.0
"""Objects of which a cut leaves less than this many pixels of a side are left out."""


def coco_tools() -> tuple[Any, Any, Any]:
    """Return pycocotools' `mask` module, `COCO` and `COCOeval`.

    Raises:
        ConfigError: when it is not installed, with the command.
    """
    try:
        from pycocotools import mask
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            f"detection needs pycocotools ({error}). Install it: pip install 'imprint[detection]'"
        ) from error
    return mask, COCO, COCOeval


@dataclass(frozen=True)
class Sample:
    """One view.

    Attributes:
        image_CHW: uint8.
        boxes_N4: float32.
        labels_N: int64, from 1: 0 is the background.
        masks_NHW: uint8 of 0 and 1; None without masks.
        row: position of the image in its data set.
    """

    image_CHW: Tensor
    boxes_N4: Tensor
    labels_N: Tensor
    masks_NHW: Tensor | None
    row: int


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """How images become views.

    Attributes:
        side: length of the shorter side in pixels.
        longest: the longer side is at most this; the shorter one shrinks with it.
        jitter: range of a factor on the size, uniform; above 1 a random window of the plain size is cut.
        flip: probability of a mirrored view.
        channels: 3, or 1 for luma.
        masks: draw the masks of the objects.
        seed: of the draws.
    """

    side: int
    longest: int
    jitter: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    channels: int = 3
    masks: bool = True
    seed: int = 0


def plain_size(height: int, width: int, side: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side at `side`, or the longer one at `longest` if that is smaller."""
    scale = min(side / min(height, width), longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def test_sample(data: CocoData, i: int, plan: ViewPlan) -> Sample:
    """Return the plain view of image i, without objects."""
    pixels = _channels(data.read(i), plan.channels)
    height, width = plain_size(pixels.shape[0], pixels.shape[1], plan.side, plan.longest)
    image = _resized(pixels, height, width)
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Sample(_tensor(image), *empty, None, i)


def training_sample(data: CocoData, i: int, step: int, plan: ViewPlan) -> Sample:
    """Return the drawn view of image i in a step, with all its objects but the crowds."""
    draws = uniforms(key(plan.seed, "detection", step, i), 4)
    pixels = _channels(data.read(i), plan.channels)
    height, width = pixels.shape[:2]
    window = plain_size(height, width, plan.side, plan.longest)
    zoom = plan.jitter[0] + (plan.jitter[1] - plan.jitter[0]) * float(draws[0])
    full = max(1, round(window[0] * zoom)), max(1, round(window[1] * zoom))
    size = min(full[0], window[0]), min(full[1], window[1])
    top, left = int(draws[1] * (full[0] - size[0] + 1)), int(draws[2] * (full[1] - size[1] + 1))
    flipped = bool(draws[3] < plan.flip)
    place = _Place(full[0] / height, full[1] / width, top, left, size, full, flipped)
    image = _resized(pixels, *full)[top : top + size[0], left : left + size[1]]
    if flipped:
        image = image[:, ::-1]
    objects = data.objects[i]
    boxes, stays, cut = place.boxes(objects)
    masks = None
    if plan.masks:
        record = data.records[i]
        drawn = [place.mask(objects.segmentations[n], record[2:], record[1]) for n in stays]
        masks = torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, *size, dtype=torch.uint8)
        for n in np.flatnonzero(cut):  # what is left of an object may be smaller than what is left of its box
            boxes[n] = _tight(drawn[n], boxes[n])
        seen = [n for n, mask in enumerate(drawn) if mask.any()]  # a cut may keep a box's corner and nothing inside
        if len(seen) < len(drawn):
            boxes, stays, masks = boxes[seen], stays[seen], masks[seen]
    labels = torch.from_numpy(objects.labels_N[stays] + 1)
    return Sample(_tensor(image), torch.from_numpy(boxes), labels, masks, i)


@dataclass(frozen=True)
class _Place:
    """Where a view lies in its image: scale, then window, then mirror."""

    scale_y: float
    scale_x: float
    top: int
    left: int
    size: tuple[int, int]
    full: tuple[int, int]
    flipped: bool

    def boxes(self, objects: Objects) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the boxes (N, 4) that remain, which objects they are, and which of them the window cuts."""
        scale = np.array([self.scale_x, self.scale_y] * 2, dtype=np.float32)
        offset = np.array([self.left, self.top] * 2, dtype=np.float32)
        limit = np.array([self.size[1], self.size[0]] * 2, dtype=np.float32)
        moved = objects.boxes_N4 * scale - offset
        boxes = np.clip(moved, 0, limit).astype(np.float32)
        cut = (np.abs(boxes - moved) > 0.5).any(1)
        if self.flipped:
            boxes[:, [0, 2]] = self.size[1] - boxes[:, [2, 0]]
        wide = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= LEAST_SIDE
        stays = np.flatnonzero(wide & ~objects.crowd_N)
        return boxes[stays], stays, cut[stays]

    def mask(self, segmentation: Segmentation, image_size: tuple[int, int], name: str) -> npt.NDArray[np.uint8]:
        """Return a segmentation drawn in the view, uint8 (H, W)."""
        tools = coco_tools()[0]
        height, width = self.size
        if isinstance(segmentation, list):
            scale = np.array([self.scale_x, self.scale_y])
            parts = []
            for polygon in segmentation:
                points = np.asarray(polygon).reshape(-1, 2) * scale - (self.left, self.top)
                if self.flipped:
                    points[:, 0] = width - points[:, 0]
                parts.append(points.reshape(-1).tolist())
            return np.asarray(tools.decode(tools.merge(tools.frPyObjects(parts, height, width))), dtype=np.uint8)
        whole = decoded(segmentation, image_size, name)
        whole = np.asarray(cv2.resize(whole, self.full[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
        part = whole[self.top : self.top + height, self.left : self.left + width]
        return np.ascontiguousarray(part[:, ::-1] if self.flipped else part)


def encoded(segmentation: Segmentation, image_size: tuple[int, int], name: str) -> dict[str, Any]:
    """Return a segmentation as pycocotools' compressed run-length encoding at the image's size (height, width).

    Raises:
        DataError: for an encoding of another size, or a damaged one.
    """
    tools = coco_tools()[0]
    height, width = image_size
    if segmentation is None:
        raise DataError(f"an object of image '{name}' has no mask.")
    if isinstance(segmentation, list):
        return dict(tools.merge(tools.frPyObjects(segmentation, height, width)))
    if tuple(segmentation["size"]) != (height, width):
        raise DataError(
            f"a mask of image '{name}' is for {segmentation['size']} pixels (height, width) and the image has "
            f"[{height}, {width}]."
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise DataError(f"a run-length encoded mask of image '{name}' covers {sum(counts)} of its pixels.")
        return dict(tools.frPyObjects(segmentation, height, width))
    return {"size": [height, width], "counts": counts}


def decoded(segmentation: Segmentation, image_size: tuple[int, int], name: str) -> npt.NDArray[np.uint8]:
    """Return a segmentation as uint8 (H, W) of 0 and 1; see `encoded` for what is raised."""
    return np.asarray(coco_tools()[0].decode(encoded(segmentation, image_size, name)), dtype=np.uint8)


class Batches:
    """Training batches by step: the same for a step however often and from wherever one starts.

    Every epoch is a keyed permutation of the images; its last batch may be smaller.

    Args:
        data: images with objects.
        plan: how they become views.
        minibatch: images per step.
        workers: threads that read ahead.
    """

    def __init__(self, data: CocoData, plan: ViewPlan, minibatch: int, workers: int) -> None:
        self.data, self.plan, self.minibatch, self.workers = data, plan, min(minibatch, len(data)), max(1, workers)
        self.per_epoch = -(-len(data) // self.minibatch)

    def rows(self, step: int) -> Sequence[int]:
        """Return the images of a step."""
        epoch, part = divmod(step, self.per_epoch)
        first = part * self.minibatch
        places = np.arange(first, min(first + self.minibatch, len(self.data)))
        return [int(i) for i in permuted(places, len(self.data), key(self.plan.seed, "order", epoch))]

    def __call__(self, first: int, last: int) -> Iterator[list[Sample]]:
        """Give the batches of steps first to last - 1, a few read ahead."""
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: list[list[Future[Sample]]] = []
            for step in range(first, last):
                for ahead in range(step + len(waiting), min(step + 3, last)):
                    waiting.append(
                        [pool.submit(training_sample, self.data, i, ahead, self.plan) for i in self.rows(ahead)]
                    )
                yield [future.result() for future in waiting.pop(0)]


def _tight(mask: npt.NDArray[np.uint8], box_4: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the box around a mask, or the given one around nothing."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return box_4
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def _channels(pixels: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    return pixels if channels == 3 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]


def _resized(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    how = cv2.INTER_AREA if height * width < pixels.shape[0] * pixels.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=how), np.uint8).reshape(height, width, -1)


def _tensor(image: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
