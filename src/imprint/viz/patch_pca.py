"""Patch features as colours: the first principal component tells foreground from ground, the next three are RGB.

After DINOv2 (arXiv 2304.07193, Fig. 1). Shapes: B images, N = gh * gw patches, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.viz.raster import Picture, resized, save_png, sheet

Patches = npt.NDArray[np.float32]


def patch_components(patches_BND: Patches, count: int = 4) -> npt.NDArray[np.float32]:
    """Return the first `count` principal components over the patches of all images together, (B, N, count).

    The sign of the first is chosen so that the patches on the border of the images lie below the others on average
    (N must be a square); missing components are zero.
    """
    batch, patches, depth = patches_BND.shape
    flat = np.nan_to_num(patches_BND.reshape(-1, depth).astype(np.float64))
    flat -= flat.mean(0)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    order = np.argsort(values)[::-1][:count]
    scores = flat @ vectors[:, order]
    scores[:, values[order] <= 1e-9 * max(float(values.max()), 1e-30)] = 0.0
    if scores.shape[1] < count:
        scores = np.pad(scores, ((0, 0), (0, count - scores.shape[1])))
    scores = scores.reshape(batch, patches, count)
    side = int(round(patches**0.5))
    if side * side == patches and side > 2:
        square = scores[..., 0].reshape(batch, side, side)
        inner = square[:, 1:-1, 1:-1].mean()
        total = square.sum() - square[:, 1:-1, 1:-1].sum()
        if total / (batch * (patches - (side - 2) ** 2)) > inner:
            scores[..., 0] *= -1
    return np.asarray(scores, dtype=np.float32)


def component_pictures(components_BNC: npt.NDArray[np.float32], grid: tuple[int, int]) -> list[tuple[Picture, Picture]]:
    """Return per image (foreground, colours), both (gh, gw, 3).

    Foreground is the first component in grey, from its lowest to its highest value over all images. Colours are the
    next three, scaled over the foreground patches (first component above 0); the ground is dimmed to a fifth.
    """
    first, rest = components_BNC[..., 0], components_BNC[..., 1:4]
    front = first > 0
    if not front.any():
        front = np.ones_like(front)
    grey = (first - first.min()) / max(float(first.max() - first.min()), 1e-12)
    low, high = np.percentile(rest[front], 2, axis=0), np.percentile(rest[front], 98, axis=0)
    colours = np.clip((rest - low) / np.maximum(high - low, 1e-12), 0, 1) * np.where(front, 1.0, 0.2)[..., None]
    out = []
    for own_grey, own_colours in zip(grey, colours, strict=True):
        ground = np.repeat(own_grey.reshape(*grid, 1), 3, axis=2)
        pair = [np.rint(255 * p).astype(np.uint8) for p in (ground, own_colours.reshape(*grid, 3))]
        out.append((pair[0], pair[1]))
    return out


def pca_sheet(images: list[Picture], patches_BND: Patches, grid: tuple[int, int], side: int = 112) -> Picture:
    """Return a sheet: a column per image, from above the image, the first component, the next three as colours."""
    pairs = component_pictures(patch_components(patches_BND), grid)
    rows = [[resized(image, side, side) for image in images]]
    rows += [[resized(pair[i], side, side, smooth=False) for pair in pairs] for i in range(2)]
    return sheet(rows)


def save_pca(images: list[Picture], patches_BND: Patches, grid: tuple[int, int], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(pca_sheet(images, patches_BND, grid), path)
