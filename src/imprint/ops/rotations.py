"""Turns of images by multiples of 90 degrees: every pixel is moved, none is computed, so nothing betrays a turn.

Shape suffixes: B images, R rotations, C channels, H x W pixels with H = W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imprint.core.errors import ConfigError


def quarter_turns(images_BCHW: Tensor, quarters: Sequence[int]) -> Tensor:
    """Return every image in every rotation, (R * B, C, H, W): all images by the first, then all by the second.

    Turns are counterclockwise, as in the public code of RotNet: a flip and a transpose, without interpolation.

    Args:
        images_BCHW: square images, any dtype.
        quarters: multiples of 90 degrees.

    Raises:
        ConfigError: for images that are not square, which a quarter turn would give another shape.
    """
    if images_BCHW.shape[-1] != images_BCHW.shape[-2]:
        raise ConfigError(
            f"quarter_turns: images of {images_BCHW.shape[-2]} x {images_BCHW.shape[-1]} pixels; only squares keep "
            "their shape when turned. Crop them square first."
        )
    turned = torch.cat([torch.rot90(images_BCHW, k % 4, (-2, -1)) for k in quarters])
    if images_BCHW.is_contiguous(memory_format=torch.channels_last):
        return turned.contiguous(memory_format=torch.channels_last)
    return turned


def turn_each(images_BCHW: Tensor, quarters_B: Tensor) -> Tensor:
    """Return each image turned by its own number of quarters counterclockwise (negative: clockwise).

    All four rotations are made and one is taken, so the host need not know which.

    Args:
        images_BCHW: square images, any dtype.
        quarters_B: int64, any sign.

    Raises:
        ConfigError: for images that are not square.
    """
    count = images_BCHW.shape[0]
    four = quarter_turns(images_BCHW, range(4)).unflatten(0, (4, count))
    return four[quarters_B % 4, torch.arange(count, device=images_BCHW.device)]
