"""Where crops lie, once the size of an image is known; and what that allows the decoder to leave out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from imprint.data.compiled import kernel
from imprint.data.draws import F64, ViewDraws
from imprint.data.views import CenterCrop, Crop

Boxes = npt.NDArray[np.float64]
"""(V, 8): start, step, first and end of the rows, then of the columns, in pixels of the image.

Output row i is centred at start + (i + 1/2) * step and reads pixels first <= y < end only.
"""


def boxes(crop: Crop | CenterCrop, draws: ViewDraws, b: int, height: int, width: int) -> Boxes:
    """Resolve the crops of sample `b`, an image of height x width pixels.

    A random crop takes the first of ten candidates that fits (torchvision's rule), else the centre at the nearest
    allowed aspect ratio. A centre crop is a window into the whole image resized; its filter may read beyond the window,
    as resizing first and cutting later does.
    """
    if isinstance(crop, CenterCrop):
        return _centre(crop, draws.look_BVP.shape[1], height, width)
    ratio = crop.ratio
    low, high = (0.0, math.inf) if ratio is None else ratio
    out = np.empty((draws.shares_BVT.shape[1], 8))
    _random(draws.shares_BVT[b], draws.aspects_BVT[b], draws.place_BV2[b], height, width, low, high, crop.size, out)
    return out


def reduced(boxes_V8: Boxes, factor: int, height: int, width: int) -> Boxes:
    """Return the boxes for the image decoded at 1/`factor`, now height x width pixels."""
    out = boxes_V8 / factor
    out[:, 2], out[:, 3] = np.floor(out[:, 2]), np.minimum(np.ceil(out[:, 3]), height)
    out[:, 6], out[:, 7] = np.floor(out[:, 6]), np.minimum(np.ceil(out[:, 7]), width)
    return out


def _centre(crop: CenterCrop, copies: int, height: int, width: int) -> Boxes:
    short, long = min(height, width), max(height, width)
    far = int(crop.resize * long / short)
    new_height, new_width = (crop.resize, far) if height <= width else (far, crop.resize)
    top, left = round((new_height - crop.size) / 2), round((new_width - crop.size) / 2)
    down, across = height / new_height, width / new_width
    return np.tile(
        np.array([top * down, down, 0, height, left * across, across, 0, width], dtype=np.float64), (copies, 1)
    )


@kernel
def _random(
    shares_VT: F64,
    aspects_VT: F64,
    place_V2: F64,
    height: int,
    width: int,
    low: float,
    high: float,
    size: int,
    out_V8: Boxes,
) -> None:
    own = width / height
    for v in range(shares_VT.shape[0]):
        w, h, found = 0, 0, False
        for attempt in range(shares_VT.shape[1]):
            area = shares_VT[v, attempt] * height * width
            aspect = aspects_VT[v, attempt]
            if aspect == 0.0:
                aspect = own
            w, h = int(np.rint(math.sqrt(area * aspect))), int(np.rint(math.sqrt(area / aspect)))
            if 0 < w <= width and 0 < h <= height:
                found = True
                break
        if found:
            top = math.floor(place_V2[v, 0] * (height - h + 1))
            left = math.floor(place_V2[v, 1] * (width - w + 1))
        else:
            w, h = width, height
            if own < low:
                h = int(np.rint(width / low))
            elif own > high:
                w = int(np.rint(height * high))
            top, left = (height - h) // 2, (width - w) // 2
        out_V8[v, 0], out_V8[v, 1], out_V8[v, 2], out_V8[v, 3] = top, h / size, top, top + h
        out_V8[v, 4], out_V8[v, 5], out_V8[v, 6], out_V8[v, 7] = left, w / size, left, left + w
