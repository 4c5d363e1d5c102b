"""Pictures of segmentation: image, truth and prediction side by side, in fixed colours with a legend.

A picture is uint8 (H, W, 3), labels are integers (H, W), negative where a pixel does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imprint.viz.colours import category, rgb
from imprint.viz.raster import Picture, resized, save_png, sheet

IGNORED_COLOUR = (235, 235, 235)
SIDE = 320
_INK = (40, 40, 40)
_ROW = 18


def palette(classes: int) -> Picture:
    """Return the colour of every class, uint8 (K, 3); class k has the same one in every picture."""
    return np.array([rgb(category(k)) for k in range(classes)], dtype=np.uint8).reshape(classes, 3)


def painted(labels: npt.NDArray[Any], classes: int) -> Picture:
    """Return labels as colours; negative ones are light grey."""
    table = np.concatenate([palette(classes), np.array([IGNORED_COLOUR], dtype=np.uint8)])
    return np.asarray(table[np.where(labels < 0, classes, labels)])


def overlaid(image: Picture, labels: npt.NDArray[Any], classes: int, strength: float = 0.6) -> Picture:
    """Return the image tinted by its labels; ignored pixels stay as they are."""
    tint = painted(labels, classes).astype(np.float32)
    share = np.where(labels < 0, 0.0, strength)[..., None]
    return np.asarray(np.rint(image * (1 - share) + tint * share), dtype=np.uint8)


def legend(names: Sequence[str], width: int, ignored: bool = True) -> Picture:
    """Return a strip of coloured squares with the classes' names, as many to a row as fit in `width` pixels."""
    entries = [(name, tuple(int(v) for v in colour)) for name, colour in zip(names, palette(len(names)), strict=True)]
    if ignored:
        entries.append(("(does not count)", IGNORED_COLOUR))
    cells: list[Picture] = []
    longest = 0
    for name, _ in entries:
        longest = max(longest, _text_width(_plain(name)))
    cell_width = min(width, longest + _ROW + 14)
    for name, colour in entries:
        cell = np.full((_ROW, cell_width, 3), 255, np.uint8)
        cv2.rectangle(cell, (2, 3), (14, 15), colour, -1)
        cv2.rectangle(cell, (2, 3), (14, 15), (150, 150, 150), 1)
        cv2.putText(cell, _plain(name), (_ROW + 2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
        cells.append(cell)
    columns = max(1, width // cell_width)
    return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)], gap=0)


def segment_sheet(
    images: Sequence[Picture],
    truths: Sequence[npt.NDArray[Any]],
    predictions: Sequence[npt.NDArray[Any]],
    names: Sequence[str],
    *,
    side: int = SIDE,
) -> Picture:
    """Return rows of image, truth and prediction under their headings, and the legend of the classes that are seen.

    Predictions are shown for every pixel, also where the truth does not count.
    """
    classes = len(names)
    rows: list[list[Picture]] = []
    for image, truth, guess in zip(images, truths, predictions, strict=True):
        scale = side / max(image.shape[:2])
        height, width = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
        rows.append(
            [
                resized(image, height, width),
                resized(painted(truth, classes), height, width, smooth=False),
                resized(painted(guess, classes), height, width, smooth=False),
            ]
        )
    heads = [_heading(word, side) for word in ("image", "truth", "prediction")]
    body = sheet([heads, *rows])
    strip = legend(names, body.shape[1], ignored=any(bool((truth < 0).any()) for truth in truths))
    return sheet([[body], [strip]])


def save_segments(
    images: Sequence[Picture],
    truths: Sequence[npt.NDArray[Any]],
    predictions: Sequence[npt.NDArray[Any]],
    names: Sequence[str],
    path: str | Path,
) -> Path:
    """Write `segment_sheet` as a PNG file and return its path."""
    return save_png(segment_sheet(images, truths, predictions, names), path)


def _heading(word: str, width: int) -> Picture:
    cell = np.full((_ROW + 2, width, 3), 255, np.uint8)
    cv2.putText(cell, word, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.48, _INK, 1, cv2.LINE_AA)
    return cell


def _text_width(text: str) -> int:
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    return int(width)


def _plain(name: str) -> str:
    """Return a name in the letters that OpenCV's font has, shortened to 28."""
    text = name.encode("ascii", "replace").decode()
    return text if len(text) <= 28 else f"{text[:25]}..."
