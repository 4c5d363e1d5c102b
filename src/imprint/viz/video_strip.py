"""Predicted objects over the frames of a video: strips for reports, and films.

A picture is uint8 (H, W, 3); ids are uint8 (H, W), 0 the background and k object k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imprint.core.errors import MissingExtra
from imprint.viz.colours import category, rgb
from imprint.viz.raster import Picture, resized, sheet

Ids = npt.NDArray[np.uint8]
BLEND = 0.55
SHORTEST = 16
"""Contours of fewer pixels are left out where there are longer ones: they would hide what lies beneath."""
VOID = 255


def overlay(image: Picture, ids_HW: Ids, truth_HW: Ids | None = None, *, width: int = 0) -> Picture:
    """Return an image with each predicted object in its colour and the contour of each true one in white on black.

    Args:
        image: the frame.
        ids_HW: predicted objects at the frame's size.
        truth_HW: annotated objects, or None.
        width: pixels of the result; 0 keeps the frame's. Contours are drawn after the change of size.
    """
    height, own = image.shape[:2]
    width = width or own
    height = max(1, round(height * width / own))
    canvas = resized(image, height, width).copy()
    small = _at(ids_HW, height, width)
    for k in np.unique(small[small > 0]).tolist():
        inside = small == k
        colour = np.array(rgb(category(k - 1)), np.float32)
        canvas[inside] = (canvas[inside] * (1 - BLEND) + colour * BLEND + 0.5).astype(np.uint8)
    if truth_HW is not None:
        true = _at(truth_HW, height, width)
        for k in np.unique(true[(true > 0) & (true != VOID)]).tolist():
            every = cv2.findContours((true == k).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
            found = [line for line in every if len(line) >= SHORTEST] or list(every)
            cv2.drawContours(canvas, found, -1, (0, 0, 0), 2, cv2.LINE_AA)
            cv2.drawContours(canvas, found, -1, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def strip(
    frames: Sequence[Picture],
    predicted: Sequence[Ids | None],
    truth: Sequence[Ids | None],
    *,
    width: int = 360,
) -> Picture:
    """Return frames side by side: predictions coloured in, true contours in white; a frame without a prediction (the
    one whose mask was given) shows its true mask coloured in.

    Raises:
        ValueError: without a frame.
    """
    cells = []
    for image, ids, true in zip(frames, predicted, truth, strict=True):
        shown = ids if ids is not None else true
        empty = np.zeros(image.shape[:2], np.uint8)
        cells.append(overlay(image, empty if shown is None else shown, true, width=width))
    return sheet([cells])


def film(pictures: Iterable[Picture], path: str | Path, *, rate: int = 12) -> Path:
    """Write pictures of one size as an MP4 file (H.264, sides cut to even numbers) and return its path.

    Raises:
        MissingExtra: without the package av.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", "writing a film") from error
    library: Any = av
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.part.mp4")
    with library.open(str(aside), "w") as container:
        stream = None
        for image in pictures:
            even = np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.width, stream.height, stream.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
            container.mux(stream.encode(library.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
    aside.replace(path)
    return path


def _at(ids_HW: Ids, height: int, width: int) -> Ids:
    if ids_HW.shape == (height, width):
        return ids_HW
    return np.asarray(cv2.resize(ids_HW, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
