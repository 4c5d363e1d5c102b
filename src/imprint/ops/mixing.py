"""Images mixed with one another, and their labels with them.

Shape suffixes: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smoothed_one_hot(labels_B: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return targets (B, K): 1 - s + s / K for the label, s / K for the others (Szegedy et al. 2016, Eq. 7)."""
    targets_BK = torch.full((labels_B.shape[0], classes), smoothing / classes, device=labels_B.device)
    return targets_BK.scatter_(1, labels_B[:, None], 1.0 - smoothing + smoothing / classes)


def mixup(images_BCHW: Tensor, targets_BK: Tensor, partner_B: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return convex combinations of images and targets (mixup, arXiv 1710.09412, Eq. 2).

    Args:
        images_BCHW: images.
        targets_BK: distributions over classes.
        partner_B: int64, which image each is mixed with.
        share: lambda in [0, 1], what is kept of the image itself.
    """
    mixed = torch.lerp(images_BCHW[partner_B], images_BCHW, share)
    return mixed, torch.lerp(targets_BK[partner_B], targets_BK, share)


def cutmix(
    images_BCHW: Tensor, targets_BK: Tensor, partner_B: Tensor, share: float, centre: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return images with a rectangle of their partners, and targets mixed by area (CutMix, arXiv 1905.04899, Sec. 3.1).

    The rectangle has sides sqrt(1 - share) of the image's and is cut off at its edges; the share that targets are mixed
    by is that of the pixels which are left.

    Args:
        images_BCHW: images.
        targets_BK: distributions over classes.
        partner_B: int64, which image each takes from.
        share: lambda in [0, 1], the area that is kept before the rectangle is cut off.
        centre: of the rectangle, in [0, 1) of height and width.
    """
    height, width = images_BCHW.shape[2:]
    side = math.sqrt(1.0 - share)
    top, bottom = _span(centre[0], side, height)
    left, right = _span(centre[1], side, width)
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = images_BCHW[partner_B, :, top:bottom, left:right]
    kept = 1.0 - (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets_BK[partner_B], targets_BK, kept)


def _span(centre: float, side: float, size: int) -> tuple[int, int]:
    middle, half = int(centre * size), int(side * size) // 2
    return max(0, middle - half), min(size, middle + half)
