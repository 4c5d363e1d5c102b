"""Normalised pixels as values in [-1, 1] and back, when the normalisation is not known.

Shape suffixes: B images, C channels, H x W pixels, V values of a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.nn.discrete_vae import BRIGHTEST, DARKEST


class PixelRange(nn.Module):
    """Each channel's black and white, learned from images; both are buffers.

    Args:
        channels: C.
    """

    low_C: Tensor
    high_C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("low_C", torch.full((channels,), DARKEST))
        self.register_buffer("high_C", torch.full((channels,), BRIGHTEST))

    def see(self, images_BCHW: Tensor) -> None:
        """Take each channel's darkest and brightest value from the training images."""
        values_CV = images_BCHW.float().transpose(0, 1).flatten(1)
        low_C, high_C = values_CV.amin(1), values_CV.amax(1)
        wide_C = high_C - low_C > 1e-3  # a channel without content keeps the usual range
        self.low_C.copy_(torch.where(wide_C, low_C, self.low_C))
        self.high_C.copy_(torch.where(wide_C, high_C, self.high_C))

    def to_unit(self, images_BCHW: Tensor) -> Tensor:
        """Return values in [-1, 1], of images no darker and no brighter than those seen."""
        low, high = self.low_C[:, None, None], self.high_C[:, None, None]
        return (images_BCHW - low) / (high - low) * 2.0 - 1.0

    def from_unit(self, unit_BCHW: Tensor) -> Tensor:
        """Return normalised images: the inverse of `to_unit`."""
        low, high = self.low_C[:, None, None], self.high_C[:, None, None]
        return (unit_BCHW + 1.0) / 2.0 * (high - low) + low
