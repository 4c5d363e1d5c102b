"""Frames around pictures that say whether a guess was right.

Shape suffixes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAR = 100.0
"""Beyond black and white in normalised values; pictures are clamped to the range before they are drawn."""


def framed(images_BCHW: Tensor, right_B: Tensor) -> Tensor:
    """Return normalised images with a frame: green where right and red where not (without colour: white and black).

    Args:
        images_BCHW: normalised floats.
        right_B: bool.
    """
    channels, height, width = images_BCHW.shape[1:]
    thick = max(1, min(height, width) // 24)
    inside_HW = torch.zeros(height, width, dtype=torch.bool, device=images_BCHW.device)
    inside_HW[thick : height - thick, thick : width - thick] = True
    right, wrong = ([-1.0, 1.0, -1.0], [1.0, -1.0, -1.0]) if channels == 3 else ([1.0] * channels, [-1.0] * channels)
    colours_2C = FAR * torch.tensor([wrong, right], device=images_BCHW.device, dtype=images_BCHW.dtype)
    return torch.where(inside_HW, images_BCHW, colours_2C[right_B.long()][:, :, None, None])
