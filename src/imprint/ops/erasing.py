"""Random erasing on the device, every image with its own rectangle.

Shape suffixes: B images, C channels, H x W pixels, T tries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imprint.ops.keyed import keyed_uniforms

TRIES = 10
SHARE = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


def random_erasing(images_BCHW: Tensor, index_B: Tensor, probability: float, *, key: int, noise_key: int) -> Tensor:
    """Return images of which some lost a rectangle to noise from N(0, 1) (arXiv 1708.04896; timm's mode `pixel`).

    A rectangle has an area share U(.02, 1/3) and a log-aspect U(log .3, log 1/.3), the first of ten tries that is
    smaller than the image, and lies anywhere in it. All of it, the noise included, is a function of the keys and the
    sample: it does not depend on the rest of the batch, and nothing waits for the device.

    Args:
        images_BCHW: normalised floats.
        index_B: int64 on the images' device, a number of its own for every image.
        probability: that an image loses a rectangle.
        key: of the rectangles, one for each step (`imprint.core.rng.seed_of`).
        noise_key: of the noise, another one.

    Returns:
        A new tensor of the same shape and dtype.
    """
    channels, height, width = images_BCHW.shape[1:]
    box_4B = rectangles(index_B, probability, height, width, key=key)
    top, bottom, left, right = (edge_B[:, None, None, None] for edge_B in box_4B)
    y_H1 = torch.arange(height, device=images_BCHW.device)[:, None]
    x_W = torch.arange(width, device=images_BCHW.device)
    inside_B1HW = (y_H1 >= top) & (y_H1 < bottom) & (x_W >= left) & (x_W < right)
    u_BN = keyed_uniforms(noise_key, index_B, channels * height * width)
    noise = torch.special.ndtri(u_BN.clamp_min_(2.0**-25)).view_as(images_BCHW).to(images_BCHW.dtype)
    return torch.where(inside_B1HW, noise, images_BCHW)


def rectangles(index_B: Tensor, probability: float, height: int, width: int, *, key: int) -> Tensor:
    """Return what is erased of every image: top, bottom, left, right, int64 (4, B); all 0 for nothing."""
    u = keyed_uniforms(key, index_B, 3 + 2 * TRIES)
    share_BT = SHARE[0] + (SHARE[1] - SHARE[0]) * u[:, 3 : 3 + TRIES]
    low, high = (math.log(a) for a in ASPECT)
    aspect_BT = torch.exp(low + (high - low) * u[:, 3 + TRIES :])
    area_BT = share_BT * (height * width)
    tall_BT, wide_BT = torch.sqrt(area_BT * aspect_BT).round(), torch.sqrt(area_BT / aspect_BT).round()
    fits_BT = (tall_BT < height) & (wide_BT < width)
    first_B1 = fits_BT.int().argmax(1, keepdim=True)
    chosen_B = (u[:, 0] < probability) & fits_BT.any(1)
    tall_B, wide_B = (side.gather(1, first_B1).squeeze(1).long() * chosen_B for side in (tall_BT, wide_BT))
    top_B = (u[:, 1] * (height - tall_B + 1)).long() * chosen_B
    left_B = (u[:, 2] * (width - wide_B + 1)).long() * chosen_B
    return torch.stack([top_B, top_B + tall_B, left_B, left_B + wide_B])
