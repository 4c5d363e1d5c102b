"""Which place of one image is which of another: nearest patch features, as lines and as a map for one point.

After the matching of ViT features by "best buddies" (arXiv 2112.05814) and of DINOv2
(arXiv 2304.07193, Fig. 10). Shapes: N and M places of the two images, D width, K pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.core.errors import ConfigError
from imprint.ops.neighbours import nearest
from imprint.viz.attention import overlay
from imprint.viz.raster import Picture, resized

Grid = tuple[int, int]
GAP = 24
"""White between the two images, in pixels."""


def mutual_nearest(first_ND: Tensor, second_MD: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the pairs (i, j) of which each is the other's nearest by cosine, most similar first.

    Returns:
        pairs_K2: int64 places of the first and the second image.
        cosine_K: float32 in [-1, 1], descending.
    """
    one, two = (F.normalize(torch.nan_to_num(x.float()), dim=1) for x in (first_ND, second_MD))
    cosine_N, there_N = (found[:, 0] for found in nearest(one, two, 1))
    back_M = nearest(two, one, 1)[1][:, 0]
    mutual = (back_M[there_N] == torch.arange(len(one))).nonzero()[:, 0]
    order = mutual[cosine_N[mutual].argsort(descending=True, stable=True)]
    pairs = torch.stack([order, there_N[order]], 1).numpy()
    return pairs, cosine_N[order].numpy()


def likeness(first_ND: Tensor, place: int, second_MD: Tensor, grid: Grid) -> npt.NDArray[np.float32]:
    """Return the cosine of one place of the first image with every place of the second, float32 (gh, gw)."""
    query, bank = (F.normalize(torch.nan_to_num(x.float()), dim=-1) for x in (first_ND[place], second_MD))
    return np.asarray((bank @ query).numpy(), dtype=np.float32).reshape(grid)


def place_of(point: Sequence[float], grid: Grid) -> int:
    """Return the place that holds a point (x, y), each in [0, 1] from the left and from the top.

    Raises:
        ConfigError: for a point outside the image.
    """
    if len(point) != 2 or not all(0 <= v <= 1 for v in point):
        raise ConfigError(f"a point is x and y from 0 to 1 (from the left, from the top), got {tuple(point)}.")
    column, row = (min(int(v * n), n - 1) for v, n in zip(point, (grid[1], grid[0]), strict=True))
    return row * grid[1] + column


def centre(place: int, grid: Grid, side: int) -> tuple[int, int]:
    """Return the middle (x, y) of a place in pixels of a picture of `side` x `side`."""
    row, column = divmod(place, grid[1])
    return round((column + 0.5) * side / grid[1]), round((row + 0.5) * side / grid[0])


def matches_picture(
    images: tuple[Picture, Picture],
    pairs_K2: npt.NDArray[np.int64],
    grid: Grid,
    *,
    matches: int = 40,
    side: int = 336,
) -> Picture:
    """Draw the first `matches` pairs as lines between two images side by side.

    Lines are coloured by where they start: hue runs around the middle of the first image's matches, so that
    neighbours have like colours and a crossing line stands out.
    """
    left, right = (resized(image, side, side) for image in images)
    canvas = np.full((side, 2 * side + GAP, 3), 255, np.uint8)
    canvas[:, :side], canvas[:, side + GAP :] = left, right
    chosen = pairs_K2[:matches]
    if not len(chosen):
        return canvas
    ends = np.array([[*centre(int(i), grid, side), *centre(int(j), grid, side)] for i, j in chosen])
    offset = ends[:, :2] - ends[:, :2].mean(0)
    hue = ((np.arctan2(offset[:, 1], offset[:, 0]) / np.pi + 1) * 89.99).astype(np.uint8)
    hsv = np.stack([hue, np.full_like(hue, 200), np.full_like(hue, 255)], 1)[None]
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].tolist()
    dot = max(3, side // 90)
    for (ax, ay, bx, by), colour in zip(ends.tolist(), colours, strict=True):
        start, stop = (ax, ay), (bx + side + GAP, by)
        cv2.line(canvas, start, stop, colour, 1, cv2.LINE_AA)
        for end in (start, stop):
            cv2.circle(canvas, end, dot, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(canvas, end, dot - 1, colour, -1, cv2.LINE_AA)
    return canvas


def likeness_picture(
    images: tuple[Picture, Picture], features: tuple[Tensor, Tensor], place: int, grid: Grid, *, side: int = 336
) -> Picture:
    """Draw the likeness of one place of the first image to all places of both images, side by side.

    A ring marks the place in the first image and the most similar one in the second; each map has its own range.
    """
    canvas = np.full((side, 2 * side + GAP, 3), 255, np.uint8)
    for index, (image, own) in enumerate(zip(images, features, strict=True)):
        found = likeness(features[0], place, own, grid)
        # A white marker would vanish on the bright end of the ramp, so it wears a black rim.
        part = np.ascontiguousarray(overlay(resized(image, side, side), found))
        at = centre(place if index == 0 else int(found.argmax()), grid, side)
        for radius, colour, width in ((side // 32, (0, 0, 0), 4), (side // 32, (255, 255, 255), 2)):
            cv2.circle(part, at, max(4, radius), colour, width, cv2.LINE_AA)
        canvas[:, index * (side + GAP) : index * (side + GAP) + side] = part
    return canvas
