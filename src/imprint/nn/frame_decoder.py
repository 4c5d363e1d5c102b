"""From the features of past frames to the next frame, coarse to fine.

Shape suffixes: B clips, T past frames, C channels, s side of a scale, D width of a map, h x w its cells, W width per
frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.core.errors import ConfigError


class FrameDecoder(nn.Module):
    """One convolutional network per scale, each adding to the enlarged guess of the coarser one (arXiv 1511.05440).

    y_k = u(y_k-1) + G_k(features of the past frames at scale k, u(y_k-1)), u nearest-neighbour
    upsampling (public code). The paper's networks read the frames themselves; here they read what the encoder says of
    each of them. A map of the encoder enters at the scale of its own resolution: every cell is widened and unfolded
    into the pixels that it covers (a pixel shuffle), or averaged where the scale is coarser. Frames are told apart by
    their place among the channels: G_k sees all of them side by side, as in the paper.

    Args:
        maps: (D, stride in pixels) of each of the encoder's maps.
        image_size: side of the frames.
        channels: C.
        past: T.
        scales: number of scales, each twice as fine as the one before; the last is the frame's.
        width: W, channels per frame at every scale.
        hidden: channels of the layers of G_k between its input and its output.
        zero: start with G_k = 0.

    Raises:
        ConfigError: for sides that cannot be halved often enough, or do not hold whole cells.
    """

    def __init__(
        self,
        maps: Sequence[tuple[int, int]],
        image_size: int,
        channels: int,
        past: int,
        *,
        scales: int = 4,
        width: int = 32,
        hidden: Sequence[int] = (128, 256, 128),
        zero: bool = False,
    ) -> None:
        super().__init__()
        if scales < 1 or past < 1 or image_size % 2 ** (scales - 1):
            raise ConfigError(
                f"next-frame prediction in {scales} scales from {past} frames of {image_size} pixels: both must be at "
                "least 1, and the side must be divisible by two once per scale but one. Set --method.scales."
            )
        self.past = past
        self.sides = [image_size >> k for k in reversed(range(scales))]
        cells = [_cells(image_size, stride) for _, stride in maps]
        self.chosen = [_entering(cells, self.sides, k) for k in range(scales)]
        self.lifts = nn.ModuleList(
            nn.ModuleList(_Lift(maps[m][0], cells[m], width, side) for m in chosen)
            for chosen, side in zip(self.chosen, self.sides, strict=True)
        )
        self.nets = nn.ModuleList(
            _convolutions(past * width + (channels if k else 0), hidden, channels, zero) for k in range(scales)
        )

    def forward(self, maps: Sequence[Tensor], base_BCHW: Tensor | None = None) -> list[Tensor]:
        """Return the predicted frame at every scale, coarsest first.

        Args:
            maps: the encoder's maps of all past frames, (B T, D, h, w), a clip's frames in a row.
            base_BCHW: a frame that the prediction is the change of; None predicts the frame itself.
        """
        found: list[Tensor] = []
        change: Tensor | None = None
        for side, chosen, lifts, net in zip(self.sides, self.chosen, self.lifts, self.nets, strict=True):
            assert isinstance(lifts, nn.ModuleList)
            seen = torch.stack([lift(maps[m]) for m, lift in zip(chosen, lifts, strict=True)]).sum(0)
            x = F.relu(seen).unflatten(0, (-1, self.past)).flatten(1, 2)
            base = None if base_BCHW is None else shrunk(base_BCHW, side)
            if change is None:
                change = net(x)
            else:
                enlarged = F.interpolate(change, scale_factor=2, mode="nearest")
                guess = enlarged if base is None else enlarged + base
                change = enlarged + net(torch.cat([x, guess.to(x.dtype)], dim=1))
            found.append(change if base is None else change + base)
        return found


def shrunk(frames_BCHW: Tensor, side: int) -> Tensor:
    """Return frames at a coarser scale: means over squares (public code)."""
    factor = frames_BCHW.shape[-1] // side
    return F.avg_pool2d(frames_BCHW, factor) if factor > 1 else frames_BCHW


class _Lift(nn.Module):
    """A map (B, D, h, h) to (B, W, s, s)."""

    def __init__(self, inputs: int, cells: int, width: int, side: int) -> None:
        super().__init__()
        large, small = max(cells, side), min(cells, side)
        if large % small:
            raise ConfigError(
                f"a map of {cells} x {cells} cells does not fit a scale of {side} x {side} pixels; choose an image "
                "size that is a power of two times the encoder's stride, or fewer scales."
            )
        self.pool = cells // side if cells > side else 1
        self.unfold = side // cells if side > cells else 1
        self.widen = nn.Conv2d(inputs, width * self.unfold**2, 1)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        x = F.avg_pool2d(map_BDhw, self.pool) if self.pool > 1 else map_BDhw
        x = self.widen(x)
        return F.pixel_shuffle(x, self.unfold) if self.unfold > 1 else x


def _cells(image_size: int, stride: int) -> int:
    if image_size % stride:
        raise ConfigError(
            f"frames of {image_size} pixels do not hold whole cells of {stride} pixels; use --image-size "
            f"{-(-image_size // stride) * stride}."
        )
    return image_size // stride


def _entering(cells: Sequence[int], sides: Sequence[int], scale: int) -> list[int]:
    """Return which maps enter at a scale: those finer than the coarser scale, or else the finest that is no finer."""
    coarser = sides[scale - 1] if scale else 0
    between = [m for m, c in enumerate(cells) if coarser < c <= sides[scale]]
    if between:
        return between
    nearest = max((c for c in cells if c <= sides[scale]), default=min(cells))
    return [cells.index(nearest)]


def _convolutions(inputs: int, hidden: Sequence[int], outputs: int, zero: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    for channels in hidden:
        parts += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
        inputs = channels
    last = nn.Conv2d(inputs, outputs, 3, padding=1)
    if zero:
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    return nn.Sequential(*parts, last)
