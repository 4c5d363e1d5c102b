"""All maps of an encoder on one grid: what a dense prediction at a chosen resolution reads.

Shapes: B images, D_i width of map i, h_i x w_i its grid, C channels, h x w the grid of the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError


class Hypercolumn(nn.Module):
    """Maps (B, D_i, h_i, w_i) -> (B, C, h, w): a 1x1 convolution each, resized, summed, then 3x3 convolutions.

    The sum of 1x1 convolutions of the maps is the 1x1 convolution of their concatenation at every place, the
    hypercolumn (Hariharan et al., arXiv 1411.5752); resizing after the convolution moves C channels instead of D_i.
    BatchNorm and ReLU follow the sum and every 3x3 convolution.

    Args:
        widths: D_i.
        channels: C.
        layers: number of 3x3 convolutions.

    Raises:
        ConfigError: for no maps.
    """

    def __init__(self, widths: Sequence[int], channels: int, layers: int = 2) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("a hypercolumn is made of at least one map; this encoder gives none.")
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in widths)
        parts: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU()]
        for _ in range(layers):
            parts += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.body = nn.Sequential(*parts)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the features (B, C, h, w) on the grid `size` = (h, w)."""
        arms = [resized(lateral(x), size) for lateral, x in zip(self.laterals, maps, strict=True)]
        total = arms[0]
        for arm in arms[1:]:
            total = total + arm
        features: Tensor = self.body(total)
        return features


def resized(x_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the maps on another grid, bilinear, antialiased where it is coarser.

    As two products with banded matrices: unlike torch's kernels its gradient on a GPU is the same in every run.

    Args:
        x_BChw: floats.
        size: (H, W) of the result.
    """
    if tuple(x_BChw.shape[2:]) == size:
        return x_BChw
    rows = _triangles(int(x_BChw.shape[2]), size[0], x_BChw)
    columns = _triangles(int(x_BChw.shape[3]), size[1], x_BChw)
    return rows @ x_BChw @ columns.T


def _triangles(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Return the weights (outputs, inputs) of the triangle filter, half-pixel centres, rows of sum 1."""
    scale = inputs / outputs
    centre_O1 = (torch.arange(outputs, device=like.device, dtype=torch.float32)[:, None] + 0.5) * scale - 0.5
    place_I = torch.arange(inputs, device=like.device, dtype=torch.float32)
    weight_OI = (1 - (place_I - centre_O1).abs() / max(1.0, scale)).clamp_min(0)
    return (weight_OI / weight_OI.sum(1, keepdim=True)).to(like.dtype)
