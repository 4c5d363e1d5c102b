"""Patch features as colours: the first principal component tells foreground from ground, the next three are RGB.

After DINOv2 (arXiv 2304.07193, Fig. 1). Shapes: B images, N = gh * gw patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.viz.principal import Axes, principal_axes
from imprint.viz.raster import Picture, resized, save_png, sheet

Patches = npt.NDArray[np.float32]


def patch_components(
    patches_BND: Patches, count: int = 4, *, grid: tuple[int, int] | None = None, axes: Axes | None = None
) -> npt.NDArray[np.float32]:
    """Return the first `count` principal components over the patches of all images together, (B, N, count).

    The sign of the first is chosen so that the patches on the border of the images lie below the others on average;
    missing components are zero.

    Args:
        patches_BND: patch features, without class and register tokens.
        count: components.
        grid: (gh, gw), N = gh * gw; None takes a square.
        axes: axes found on more images than these (`patch_axes`), sign included; None finds them here.
    """
    batch, patches, depth = patches_BND.shape
    if axes is None:
        axes = patch_axes([patches_BND], count, grid=grid)
    clean = np.nan_to_num(patches_BND.reshape(-1, depth), posinf=0.0, neginf=0.0)
    scores = axes.project(clean)[:, :count]
    if scores.shape[1] < count:
        scores = np.pad(scores, ((0, 0), (0, count - scores.shape[1])))
    return np.asarray(scores.reshape(batch, patches, count), dtype=np.float32)


def patch_axes(batches: Sequence[Patches], count: int = 4, *, grid: tuple[int, int] | None = None) -> Axes:
    """Return the principal axes over the patches of many images, the first turned so that borders lie below the rest.

    One batch at a time is copied, so a set of thousands of images costs the memory of one of its batches.

    Args:
        batches: (B, N, D) each.
        count: axes.
        grid: see `patch_components`.
    """
    axes = principal_axes((b.reshape(-1, b.shape[2]) for b in batches), count)
    patches = batches[0].shape[1]
    side = round(patches**0.5)
    rows, columns = grid or (side, side)
    if rows * columns != patches or min(rows, columns) < 3:
        return axes
    edge = np.ones((rows, columns), dtype=bool)
    edge[1:-1, 1:-1] = False
    outer = inner = 0.0
    for batch in batches:
        scores = np.nan_to_num(axes.project(batch.reshape(-1, batch.shape[2]))[:, 0]).reshape(-1, patches)
        outer += float(scores[:, edge.ravel()].sum()) / edge.sum()
        inner += float(scores[:, ~edge.ravel()].sum()) / (~edge).sum()
    if outer > inner:
        turned = axes.axes_DC.copy()
        turned[:, 0] *= -1
        return Axes(axes.mean_D, turned, axes.variance_C)
    return axes


def component_pictures(components_BNC: npt.NDArray[np.float32], grid: tuple[int, int]) -> list[tuple[Picture, Picture]]:
    """Return per image (foreground, colours), both (gh, gw, 3).

    Foreground is the first component in grey, from its lowest to its highest value over all images. Colours are the
    next three, scaled over the foreground patches (first component above 0); the ground is dimmed to a third.
    """
    first, rest = components_BNC[..., 0], components_BNC[..., 1:4]
    front = first > 0
    if not front.any():
        front = np.ones_like(front)
    grey = (first - first.min()) / max(float(first.max() - first.min()), 1e-12)
    low, high = np.percentile(rest[front], 2, axis=0), np.percentile(rest[front], 98, axis=0)
    colours = np.clip((rest - low) / np.maximum(high - low, 1e-12), 0, 1) * np.where(front, 1.0, 0.33)[..., None]
    out = []
    for own_grey, own_colours in zip(grey, colours, strict=True):
        ground = np.repeat(own_grey.reshape(*grid, 1), 3, axis=2)
        pair = [np.rint(255 * p).astype(np.uint8) for p in (ground, own_colours.reshape(*grid, 3))]
        out.append((pair[0], pair[1]))
    return out


def pca_sheet(images: list[Picture], patches_BND: Patches, grid: tuple[int, int], side: int = 112) -> Picture:
    """Return a sheet: a column per image, from above the image, the first component, the next three as colours."""
    pairs = component_pictures(patch_components(patches_BND, grid=grid), grid)
    rows = [[resized(image, side, side) for image in images]]
    rows += [[resized(pair[i], side, side, smooth=False) for pair in pairs] for i in range(2)]
    return sheet(rows)


def save_pca(images: list[Picture], patches_BND: Patches, grid: tuple[int, int], path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(pca_sheet(images, patches_BND, grid), path)
