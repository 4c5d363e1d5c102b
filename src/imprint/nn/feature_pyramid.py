"""Maps of one width at several strides, for detection: FPN over stages, and the simple pyramid over a ViT's one map.

Shapes: B images, D_i width of map i, E width of the pyramid, h_i x w_i cells of map i, each level half of the one
before.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each cell of a map: (B, D, h, w) -> (B, D, h, w) (ViTDet's norm)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Normalise."""
        moved = x_BDHW.permute(0, 2, 3, 1)
        normed = nn.functional.layer_norm(moved, moved.shape[-1:], self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


def group_norm(width: int) -> nn.GroupNorm:
    """Return GroupNorm with 32 groups, or the most that divide the width (arXiv 1803.08494, Sec. 4)."""
    return nn.GroupNorm(math.gcd(32, width), width)


class FeaturePyramid(nn.Module):
    """FPN (arXiv 1612.03144, Sec. 3): 1x1 laterals, a top-down path by nearest upsampling, a 3x3 convolution each.

    Every convolution is followed by GroupNorm: encoders give features of very different scales, which normalised new
    layers level out (MoCo, arXiv 1911.05722, Sec. 4.2; GroupNorm as in arXiv 1811.08883, Sec. 4). One more level is
    the coarsest one subsampled by two.

    Args:
        widths: D_i, finest first.
        width: E.

    Raises:
        ConfigError: without maps.
    """

    def __init__(self, widths: Sequence[int], width: int = 256) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("a feature pyramid needs at least one map.")
        self.laterals = nn.ModuleList(_block(nn.Conv2d(d, width, 1, bias=False), group_norm(width)) for d in widths)
        self.outputs = nn.ModuleList(
            _block(nn.Conv2d(width, width, 3, padding=1, bias=False), group_norm(width)) for _ in widths
        )
        self.out_channels = width

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Return levels `0`, `1`, ..., `pool`, finest first, all (B, E, h_i, w_i).

        Raises:
            ConfigError: for another number of maps than widths.
        """
        if len(maps) != len(self.laterals):
            raise ConfigError(f"this pyramid stands on {len(self.laterals)} maps and got {len(maps)}.")
        sides = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        merged = sides[-1:]
        for finer in reversed(sides[:-1]):
            up = nn.functional.interpolate(merged[0], size=finer.shape[-2:], mode="nearest")
            merged.insert(0, finer + up)
        return _levels([output(x) for output, x in zip(self.outputs, merged, strict=True)])


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid (arXiv 2203.16527, Sec. 3): the last map at 4, 2, 1 and 1/2 times its resolution.

    Finer levels by transposed 2x2 convolutions, the coarser one by max pooling; then a 1x1 and a 3x3 convolution, each
    with LayerNorm over the channels. One more level is the coarsest one subsampled by two.

    Args:
        dim: D of the one map.
        width: E.
    """

    scales = (4.0, 2.0, 1.0, 0.5)

    def __init__(self, dim: int, width: int = 256) -> None:
        super().__init__()
        half, quarter = max(1, dim // 2), max(1, dim // 4)
        self.resizes = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, half, 2, stride=2), ChannelNorm(half), nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(dim, half, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )  # fmt: skip
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(d, width, 1, bias=False), ChannelNorm(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width),
            )
            for d in (quarter, half, dim, dim)
        )  # fmt: skip
        self.out_channels = width

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Return levels `0` to `3` and `pool`, finest first, from a list of one map with even sides.

        Raises:
            ConfigError: for several maps, or odd sides.
        """
        if len(maps) != 1:
            raise ConfigError(f"the simple pyramid stands on one map and got {len(maps)}; use FeaturePyramid.")
        height, width = maps[0].shape[-2:]
        if height % 2 or width % 2:
            raise ConfigError(f"the simple pyramid halves the map, so its sides must be even; got {height} x {width}.")
        pairs = zip(self.resizes, self.outputs, strict=True)
        return _levels([output(resize(maps[0])) for resize, output in pairs])


def _block(convolution: nn.Conv2d, norm: nn.Module) -> nn.Sequential:
    nn.init.kaiming_uniform_(convolution.weight, a=1)  # Detectron's initialisation
    return nn.Sequential(convolution, norm)


def _levels(maps: list[Tensor]) -> OrderedDict[str, Tensor]:
    levels = OrderedDict((str(i), x) for i, x in enumerate(maps))
    levels["pool"] = nn.functional.max_pool2d(maps[-1], 1, stride=2)
    return levels
