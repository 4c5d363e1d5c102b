"""The fifteen operations of RandAugment on a batch, each image with its own operation and strength.

Semantics are PIL's on 8-bit images, as in the public code of MAE (timm's set "increasing": RandAugment, arXiv
1909.13719, with operations whose effect grows with the strength). Images are grouped by operation, so the cost is a
handful of tensor operations whatever the batch.

Shape suffixes: B images, C channels, H x W pixels, G images of one group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

GEOMETRIC: Final = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS: Final = (
    *GEOMETRIC, "auto_contrast", "equalise", "invert", "posterise", "solarise", "solarise_add", "colour", "contrast",
    "brightness", "sharpness",
)  # fmt: skip
"""Operation k of an image is OPERATIONS[k]."""

_LARGEST_TURN, _LARGEST_SHEAR, _LARGEST_SHIFT = 30.0, 0.3, 0.45  # degrees, slope, share of the side


def rand_augment(images_BCHW: Tensor, operation_B: Tensor, strength_B: Tensor, fill_C: Tensor) -> Tensor:
    """Return the images, each after one operation.

    Args:
        images_BCHW: uint8.
        operation_B: int64 on the host, positions in `OPERATIONS`, or -1 for an image that stays as it is.
        strength_B: float32 on the host, in [-1, 1]; the sign says the direction where there are two (rotation, shear,
            shift, weaker or stronger colour) and is ignored elsewhere. 1 is timm's magnitude 10.
        fill_C: float32, the colour of what comes in from outside, in [0, 255].

    Returns:
        uint8 of the same shape, a new tensor.
    """
    result = images_BCHW.clone()
    geometric = (operation_B >= 0) & (operation_B < len(GEOMETRIC))
    if geometric.any():
        rows = geometric.nonzero().squeeze(1)
        place = rows.to(images_BCHW.device)
        result[place] = moved(images_BCHW[place], operation_B[rows], strength_B[rows], fill_C)
    for number in range(len(GEOMETRIC), len(OPERATIONS)):
        rows = (operation_B == number).nonzero().squeeze(1)
        if len(rows):
            place = rows.to(images_BCHW.device)
            result[place] = recoloured(images_BCHW[place], number, strength_B[rows])
    return result


def operated(image_CHW: Tensor, operations: Sequence[int], strengths: Sequence[float], fill_C: Tensor) -> Tensor:
    """Return one uint8 image after operations in their order, the same pixels as `rand_augment` gives it in a batch."""
    image_1CHW = image_CHW[None]
    for number, strength in zip(operations, strengths, strict=True):
        strength_1 = torch.tensor([strength])
        if 0 <= number < len(GEOMETRIC):
            image_1CHW = moved(image_1CHW, torch.tensor([number]), strength_1, fill_C)
        elif number >= 0:
            image_1CHW = recoloured(image_1CHW, number, strength_1)
    return image_1CHW[0]


def moved(images_GCHW: Tensor, operation_G: Tensor, strength_G: Tensor, fill_C: Tensor) -> Tensor:
    """Return uint8 images after one geometric operation each (numbers below `len(GEOMETRIC)`, on the host)."""
    maps_G23 = affine_maps(operation_G, strength_G, *images_GCHW.shape[2:])
    return warped(images_GCHW.float(), maps_G23.to(images_GCHW.device), fill_C)


def recoloured(images_GCHW: Tensor, number: int, strength_G: Tensor) -> Tensor:
    """Return uint8 images after the photometric operation `OPERATIONS[number]`, each at its own strength."""
    strength = strength_G.to(images_GCHW.device)[:, None, None, None]
    return _PHOTOMETRIC[OPERATIONS[number]](images_GCHW.float(), strength).to(torch.uint8)


def affine_maps(operation_G: Tensor, strength_G: Tensor, height: int, width: int) -> Tensor:
    """Return (G, 2, 3): where output pixel (x, y, 1) comes from, in pixels with centres at halves.

    Shears keep the upper left corner, rotations the centre; they turn counter-clockwise for positive strengths.
    """
    identity = torch.eye(2, 3).repeat(len(operation_G), 1, 1)
    kind = [operation_G == k for k in range(len(GEOMETRIC))]
    angle_G = torch.where(kind[0], -math.radians(_LARGEST_TURN) * strength_G, 0.0)
    cos_G, sin_G = torch.cos(angle_G), torch.sin(angle_G)
    x, y = width / 2, height / 2
    identity[:, 0, 0], identity[:, 1, 1] = cos_G, cos_G
    identity[:, 0, 1] = sin_G + torch.where(kind[1], _LARGEST_SHEAR * strength_G, 0.0)
    identity[:, 1, 0] = -sin_G + torch.where(kind[2], _LARGEST_SHEAR * strength_G, 0.0)
    identity[:, 0, 2] = x - cos_G * x - sin_G * y + torch.where(kind[3], _LARGEST_SHIFT * width * strength_G, 0.0)
    identity[:, 1, 2] = y + sin_G * x - cos_G * y + torch.where(kind[4], _LARGEST_SHIFT * height * strength_G, 0.0)
    return identity


def warped(images_GCHW: Tensor, maps_G23: Tensor, fill_C: Tensor) -> Tensor:
    """Return uint8 images resampled bicubically through affine maps; outside of the image is `fill_C`."""
    count, channels, height, width = images_GCHW.shape
    device = images_GCHW.device
    x_W, y_H1 = torch.arange(width, device=device) + 0.5, torch.arange(height, device=device)[:, None] + 0.5
    # Number by number and not as a matrix product, whose rounding may depend on how many images there are.
    a, b, c = maps_G23.view(count, 2, 3, 1, 1).unbind(2)
    source_G2HW = a * x_W + b * y_H1 + c
    sides = torch.tensor([width, height], device=device).view(1, 2, 1, 1)
    inside = ((source_G2HW >= 0) & (source_G2HW < sides)).all(1, keepdim=True)
    grid = (2.0 * source_G2HW / sides - 1.0).permute(0, 2, 3, 1)
    found = F.grid_sample(images_GCHW, grid, mode="bicubic", padding_mode="border", align_corners=False)
    fill = fill_C.to(device).view(1, channels, 1, 1)
    return torch.where(inside, found, fill).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _auto_contrast(x: Tensor, strength: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    scale = 255.0 / (high - low).clamp_min(1.0)
    return torch.where(high > low, (x * scale - low * scale).floor_().clamp_(0, 255), x)


def _equalise(x: Tensor, strength: Tensor) -> Tensor:
    levels = x.long().flatten(2).flatten(0, 1)  # one row per image and channel
    histogram = torch.zeros(len(levels), 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(1, levels, torch.ones_like(levels))
    last = histogram.gather(1, levels.amax(1, keepdim=True))
    step = (histogram.sum(1, keepdim=True) - last) // 255
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, table.gather(1, levels), levels).view_as(x).float()


def _invert(x: Tensor, strength: Tensor) -> Tensor:
    return 255.0 - x


def _posterise(x: Tensor, strength: Tensor) -> Tensor:
    unit = torch.exp2(4.0 + (4.0 * strength.abs()).floor())  # 4 bits are kept at strength 0, none at 1
    return (x / unit).floor() * unit


def _solarise(x: Tensor, strength: Tensor) -> Tensor:
    threshold = 256.0 - (256.0 * strength.abs()).floor()
    return torch.where(x >= threshold, 255.0 - x, x)


def _solarise_add(x: Tensor, strength: Tensor) -> Tensor:
    return torch.where(x < 128, (x + (110.0 * strength.abs()).floor()).clamp_max(255), x)


def _colour(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(_grey(x), x, strength) if x.shape[1] == 3 else x


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    return _blend((_grey(x).mean((1, 2, 3), keepdim=True) + 0.5).floor(), x, strength)


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(torch.zeros_like(x), x, strength)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    weight = torch.full((3, 3), 1.0, device=x.device)
    weight[1, 1] = 5.0
    kernel = (weight / 13.0).expand(x.shape[1], 1, 3, 3)
    smooth = x.clone()
    if min(x.shape[2:]) > 2:  # the border stays as it is
        smooth[:, :, 1:-1, 1:-1] = (F.conv2d(x, kernel, groups=x.shape[1]) + 0.5).floor()
    return _blend(smooth, x, strength)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True).floor()
    weight = torch.tensor([19595.0, 38470.0, 7471.0], device=x.device).view(1, 3, 1, 1)  # ITU-R 601 in 2^-16
    return (((x * weight).sum(1, keepdim=True) + 32768.0) / 65536.0).floor()


def _blend(degenerate: Tensor, x: Tensor, strength: Tensor) -> Tensor:
    factor = (1.0 + 0.9 * strength).clamp_min(0.1)
    return (degenerate + factor * (x - degenerate)).clamp_(0, 255).floor_()


_PHOTOMETRIC: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "auto_contrast": _auto_contrast, "equalise": _equalise, "invert": _invert, "posterise": _posterise,
    "solarise": _solarise, "solarise_add": _solarise_add, "colour": _colour, "contrast": _contrast,
    "brightness": _brightness, "sharpness": _sharpness,
}  # fmt: skip
