"""UPerNet (arXiv 1807.10221): pyramid pooling on the coarsest map, a feature pyramid below it, all levels fused.

Shapes: B images, D_i width of map i, C channels of the head, K classes, maps finest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imprint.core.errors import ConfigError


def _conv(width: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class FourScales(nn.Module):
    """Four maps of one stride p, as a plain ViT gives them -> maps of strides p/4, p/2, p and 2p.

    Two transposed convolutions with a norm and a GELU between them, one transposed convolution, nothing, and a maximum
    over 2 x 2 (BEiT, arXiv 2106.08254, App. on segmentation and public code). For a patch of 8 they are one
    transposed convolution, nothing, and maxima over 2 x 2 and 4 x 4, so that the strides are 4 to 32 in both cases;
    for smaller patches the finest map is the encoder's.

    Args:
        width: D of all four maps.
        patch: p.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        steps = [_scale_step(patch, stride) for stride in ((4, 8, 16, 32) if patch >= 4 else (1, 2, 4, 8))]
        self.levels = nn.ModuleList(self._level(width, step) for step in steps)

    @staticmethod
    def _level(width: int, step: int) -> nn.Module:
        """Return what makes a map 2^step times finer, or coarser for negative steps."""
        if step <= 0:
            return nn.MaxPool2d(2**-step, ceil_mode=True) if step else nn.Identity()
        parts: list[nn.Module] = []
        for i in range(step):
            parts += [nn.BatchNorm2d(width), nn.GELU()] if i else []
            parts.append(nn.ConvTranspose2d(width, width, 2, 2))
        return nn.Sequential(*parts)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the four maps, finest first."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _scale_step(patch: int, stride: int) -> int:
    """Return how many doublings lead from a map of stride `patch` to about `stride`, never more than two."""
    return min(2, round(math.log2(patch / stride))) if patch >= 4 else -round(math.log2(stride))


class PyramidPooling(nn.Module):
    """Means over 1, 2 x 2, 3 x 3 and 6 x 6 bins beside the map itself (PSPNet, arXiv 1612.01105, Sec. 3.2)."""

    def __init__(self, width: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.arms = nn.ModuleList(_conv(width, channels, 1) for _ in self.bins)
        self.fuse = _conv(width + channels * len(self.bins), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) of (B, D, h, w)."""
        arms = [
            _resized(arm(F.adaptive_avg_pool2d(x, bins)), x) for bins, arm in zip(self.bins, self.arms, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat([x, *arms], 1))
        return fused


class UPerNet(nn.Module):
    """Maps of an encoder -> class logits on the grid of the finest, and the auxiliary logits for training.

    Args:
        widths: D_i, finest map first.
        classes: K.
        channels: C (512 in the paper's code).
        patch: p for plain ViTs, whose maps all have one stride and go through `FourScales`; 0 for pyramids.
        dropout: before each classifier (0.1, mmsegmentation's and BEiT's configuration).

    Raises:
        ConfigError: for fewer than two maps.
    """

    def __init__(
        self, widths: Sequence[int], classes: int, channels: int = 512, patch: int = 0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ConfigError(
                f"UPerNet joins maps of several scales and got {len(widths)}; give the encoder's --layers (four blocks "
                "of a ViT) or use --head linear."
            )
        if patch and (len(widths) != 4 or len(set(widths)) != 1):
            raise ConfigError(
                f"the four scales of UPerNet are made from four blocks of one width, and these are {len(widths)}; give "
                "four --layers."
            )
        self.scales = FourScales(widths[0], patch) if patch else None
        self.laterals = nn.ModuleList(_conv(width, channels, 1) for width in widths[:-1])
        self.pooling = PyramidPooling(widths[-1], channels)
        self.smooth = nn.ModuleList(_conv(channels, channels, 3) for _ in widths[:-1])
        self.fuse = _conv(channels * len(widths), channels, 3)
        self.drop = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)
        # The auxiliary head of mmsegmentation, BEiT and MAE: one convolution of 256 channels on the third of four maps.
        self.auxiliary = nn.Sequential(
            _conv(widths[-2], 256, 3), nn.Dropout2d(dropout), nn.Conv2d(256, classes, 1)
        )  # fmt: skip

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, h_0, w_0) and auxiliary logits (B, K, h, w) on the grid of the last map but one."""
        levels = self.scales(maps) if self.scales is not None else list(maps)
        paths = [lateral(x) for lateral, x in zip(self.laterals, levels, strict=False)] + [self.pooling(levels[-1])]
        for i in range(len(paths) - 2, -1, -1):
            paths[i] = paths[i] + _resized(paths[i + 1], paths[i])
        outs = [smooth(x) for smooth, x in zip(self.smooth, paths, strict=False)] + [paths[-1]]
        fused = self.fuse(torch.cat([outs[0], *(_resized(x, outs[0]) for x in outs[1:])], 1))
        return self.classify(self.drop(fused)), self.auxiliary(levels[-2])
