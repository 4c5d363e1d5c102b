"""Arrays as pictures: to 8-bit RGB, into sheets, into PNG and JPEG.

A picture is uint8 (H, W, 3).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
GAP_COLOUR = 255


def picture(image: npt.NDArray[Any], *, channels_first: bool = False) -> Picture:
    """Return an image of any depth and number of channels as a picture.

    uint16 is scaled from its full range, floats from [0, 1]; one channel becomes grey, two become red and green, of
    more than three the first three are shown.
    """
    array = np.asarray(image)
    if channels_first:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        array = (np.nan_to_num(array.astype(np.float32)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    channels = array.shape[2]
    if channels == 1:
        array = np.repeat(array, 3, axis=2)
    elif channels == 2:
        array = np.concatenate([array, np.zeros_like(array[..., :1])], axis=2)
    return np.ascontiguousarray(array[..., :3])


def resized(image: Picture, height: int, width: int, *, smooth: bool = True) -> Picture:
    """Return the picture at another size: area average when it shrinks, else cubic, or blocks without `smooth`."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    if shrinks and smooth:
        how = cv2.INTER_AREA
    else:
        how = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


def thumbnail(image: Picture, side: int) -> Picture:
    """Return the centre square at `side` x `side`."""
    height, width = image.shape[:2]
    cut = min(height, width)
    top, left = (height - cut) // 2, (width - cut) // 2
    return resized(np.ascontiguousarray(image[top : top + cut, left : left + cut]), side, side)


def sheet(rows: Sequence[Sequence[Picture]], *, gap: int = 4) -> Picture:
    """Put pictures of any sizes into rows and columns on white; each column is as wide as its widest picture."""
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a sheet needs at least one picture")
    widths = [max((row[c].shape[1] for row in rows if c < len(row)), default=0) for c in range(columns)]
    heights = [max((p.shape[0] for p in row), default=0) for row in rows]
    canvas = np.full((sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1), 3), GAP_COLOUR, np.uint8)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for column, cell in enumerate(row):
            canvas[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
            x += widths[column] + gap
        y += height + gap
    return canvas


def mosaic(images: Sequence[Picture], side: int, columns: int) -> Picture:
    """Return square thumbnails without gaps, `columns` in a row (a CSS sprite); free cells are black."""
    rows = -(-len(images) // columns)
    canvas = np.zeros((rows * side, columns * side, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        canvas[y * side : (y + 1) * side, x * side : (x + 1) * side] = thumbnail(image, side)
    return canvas


def encode(image: Picture, kind: str = "png", quality: int = 85) -> bytes:
    """Return the picture as the bytes of a PNG or a JPEG file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else []
    done, data = cv2.imencode(".jpg" if kind == "jpeg" else ".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"a picture of shape {image.shape} cannot be written as {kind}")
    return bytes(data)


def data_uri(image: Picture, kind: str = "jpeg", quality: int = 85) -> str:
    """Return the picture as a data URI for a page that loads nothing else."""
    return f"data:image/{kind};base64,{base64.b64encode(encode(image, kind, quality)).decode()}"


def read_png(path: str | Path) -> Picture:
    """Return a picture from a PNG file.

    Raises:
        ValueError: when the file holds no picture.
    """
    found = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError(f"'{path}' holds no picture")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def save_png(image: Picture, path: str | Path) -> Path:
    """Write the picture as a PNG file and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, "png"))
    return path
