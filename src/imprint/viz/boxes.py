"""Boxes and masks on images, what was found beside what is there.

Shapes: N objects, H x W pixels, 4 = (x1, y1, x2, y2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from imprint.viz.colours import category, rgb
from imprint.viz.raster import Picture, resized, save_png, sheet

STRENGTH = 0.45
"""How much of a mask's colour covers the image."""


@dataclass(frozen=True)
class Drawn:
    """What is drawn on an image.

    Attributes:
        boxes_N4: corners in pixels.
        labels_N: class of each, which chooses the colour.
        captions: text of each.
        masks: per object bool or uint8 (H, W); empty for none.
    """

    boxes_N4: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64]
    captions: Sequence[str]
    masks: Sequence[npt.NDArray[np.uint8]] = ()

    def __len__(self) -> int:
        return len(self.labels_N)


def draw_objects(image: Picture, objects: Drawn, *, width: int = 480) -> Picture:
    """Return the image at `width` pixels with masks, boxes and captions; larger objects lie below smaller ones."""
    scale = width / image.shape[1]
    height = max(1, round(image.shape[0] * scale))
    canvas = resized(image, height, width).copy()
    boxes = np.asarray(objects.boxes_N4, dtype=np.float32).reshape(-1, 4) * scale
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    if len(objects.masks):
        for n in order:
            mask = resized(np.asarray(objects.masks[n], dtype=np.uint8), height, width, smooth=False) > 0
            colour = np.array(rgb(category(int(objects.labels_N[n]))), dtype=np.float32)
            canvas[mask] = np.rint(canvas[mask] * (1 - STRENGTH) + colour * STRENGTH).astype(np.uint8)
    corners = np.rint(boxes).astype(int)
    for n in order:
        x1, y1, x2, y2 = corners[n].tolist()
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), rgb(category(int(objects.labels_N[n]))), 2)
    for n in order:  # captions last, so that no box crosses them
        x1, y1 = corners[n, :2].tolist()
        _caption(canvas, objects.captions[n], x1, y1, rgb(category(int(objects.labels_N[n]))))
    return canvas


def _caption(canvas: Picture, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's letters
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    (width, height), below = cv2.getTextSize(plain, font, size, 1)
    x = max(0, min(x, canvas.shape[1] - width - 4))
    y = max(height + below + 2, y)
    cv2.rectangle(canvas, (x, y - height - below - 2), (x + width + 4, y), colour, -1)
    cv2.putText(canvas, plain, (x + 2, y - below), font, size, (255, 255, 255), 1, cv2.LINE_AA)


def detection_sheet(
    images: Sequence[Picture], truth: Sequence[Drawn], found: Sequence[Drawn], *, width: int = 480
) -> Picture:
    """Return a sheet with a row per image: on the left what is annotated, on the right what was found."""
    rows = [
        [draw_objects(image, there, width=width), draw_objects(image, seen, width=width)]
        for image, there, seen in zip(images, truth, found, strict=True)
    ]
    return sheet(rows)


def save_detections(
    images: Sequence[Picture], truth: Sequence[Drawn], found: Sequence[Drawn], path: str | Path
) -> Path:
    """Write `detection_sheet` as a PNG file and return its path."""
    return save_png(detection_sheet(images, truth, found), path)
