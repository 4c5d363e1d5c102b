"""Overlapping patches on a grid, each cut a little aside, and frames put together of patches.

Shape suffixes: B images, C channels, H x W pixels, N patches (rows of the grid first), P side of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError

JITTER_NUMBERS = 4
"""Uniform numbers that the jitter of one patch takes."""


def grid_side(side: int, patch: int, stride: int) -> int:
    """Return how many whole patches lie along `side` pixels.

    Raises:
        ConfigError: when not even one does, or a side is not positive.
    """
    if min(patch, stride) < 1 or patch > side:
        raise ConfigError(f"patches of {patch} px, {stride} px apart, do not fit into {side} px.")
    return (side - patch) // stride + 1


def grid_boxes(height: int, width: int, patch: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Return (N, 4) float32 boxes (left, top, width, height) in pixels of all patches on the grid."""
    top_R = torch.arange(grid_side(height, patch, stride), device=device) * float(stride)
    left_C = torch.arange(grid_side(width, patch, stride), device=device) * float(stride)
    top_N, left_N = torch.meshgrid(top_R, left_C, indexing="ij")
    side_N = torch.full_like(top_N, float(patch))
    return torch.stack((left_N, top_N, side_N, side_N), -1).flatten(0, 1)


def jittered(
    boxes: Tensor, uniforms: Tensor, area: tuple[float, float], aspect: tuple[float, float] = (3 / 4, 4 / 3)
) -> Tensor:
    """Return a random crop inside every box: area share U(area), log aspect uniform, anywhere it fits.

    torchvision's RandomResizedCrop, except that an aspect which does not fit the box is never drawn, where torchvision
    draws again, and that edges need not be whole pixels.

    Args:
        boxes: (..., 4) as `grid_boxes` gives them.
        uniforms: (..., 4) in [0, 1), broadcast over boxes: area, aspect, place across, place down.
        area: bounds of the share of the box, in (0, 1].
        aspect: bounds of width / height relative to the box's.

    Raises:
        ConfigError: for bounds out of range.
    """
    if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= 1 <= aspect[1]:
        raise ConfigError(f"jittered: area {area} must lie in (0, 1] and aspect {aspect} around 1.")
    u_area, u_aspect, u_across, u_down = uniforms.unbind(-1)
    left, top, width, height = boxes.unbind(-1)
    log_share = (area[0] + (area[1] - area[0]) * u_area).log()
    # A share s fits for s <= aspect <= 1 / s: both sides are then at most those of the box.
    low, high = log_share.clamp(min=math.log(aspect[0])), (-log_share).clamp(max=math.log(aspect[1]))
    log_aspect = low + (high - low) * u_aspect
    wide, tall = width * ((log_share + log_aspect) / 2).exp(), height * ((log_share - log_aspect) / 2).exp()
    return torch.stack((left + (width - wide) * u_across, top + (height - tall) * u_down, wide, tall), -1)


def cut_boxes(images_BCHW: Tensor, boxes_BN4: Tensor, size: int) -> Tensor:
    """Return the contents of boxes, bilinear at `size` x `size`: (B, N, C, size, size).

    Not antialiased: boxes should not be much larger than `size`.

    Args:
        images_BCHW: floats.
        boxes_BN4: (left, top, width, height) in pixels for every image, or (N, 4) for all.
        size: side of the patches, P.
    """
    height, width = images_BCHW.shape[-2:]
    boxes_BN14 = boxes_BN4.expand(len(images_BCHW), -1, 4)[:, :, None]
    centre_P = (torch.arange(size, device=images_BCHW.device, dtype=boxes_BN4.dtype) + 0.5) / size
    x_BNP = (boxes_BN14[..., 0] + centre_P * boxes_BN14[..., 2]) * (2 / width) - 1
    y_BNP = (boxes_BN14[..., 1] + centre_P * boxes_BN14[..., 3]) * (2 / height) - 1
    shape = (*x_BNP.shape[:2], size, size)
    places = torch.stack((x_BNP[:, :, None, :].expand(shape), y_BNP[..., None].expand(shape)), -1)
    # One call for all patches of an image: they stand below each other.
    cut_BCLP = F.grid_sample(
        images_BCHW, places.flatten(1, 2).to(images_BCHW.dtype), padding_mode="border", align_corners=False
    )
    return cut_BCLP.unflatten(2, (-1, size)).transpose(1, 2)


def laid_out(patches_BNCPP: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Return images (B, C, H, W) of patches on a grid, the mean where they overlap and 0 where there are none."""
    batch, count, channels, patch, _ = patches_BNCPP.shape
    columns_BKN = patches_BNCPP.flatten(2).transpose(1, 2)
    ones_1KN = patches_BNCPP.new_ones(1, patch * patch, count)
    image = F.fold(columns_BKN, (height, width), patch, stride=stride)
    weight = F.fold(ones_1KN, (height, width), patch, stride=stride)
    return image / weight.clamp_min(1.0)
