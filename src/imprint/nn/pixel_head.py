"""The one-layer head that turns features into pixels (SimMIM, arXiv 2111.09886, Sec. 3.3)."""

from __future__ import annotations

from torch import Tensor, nn


class PixelHead(nn.Module):
    """Each token to the pixels of its square: a linear layer (a 1x1 convolution) and a pixel shuffle.

    Shapes: (B, N, D) tokens of a grid (gh, gw), N = gh * gw -> (B, C, gh * s, gw * s).

    Args:
        width: D.
        stride: s, side of the square in pixels.
        channels: C.
        layers: linear layers, GELU between them; all but the last keep the width (the paper's MLP heads, Table 3).
    """

    def __init__(self, width: int, stride: int, channels: int = 3, layers: int = 1) -> None:
        super().__init__()
        self.stride = stride
        hidden = [m for _ in range(layers - 1) for m in (nn.Linear(width, width), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, stride * stride * channels))

    def forward(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return pixels (B, C, gh * s, gw * s)."""
        values_BDhw = self.layers(tokens_BND).transpose(1, 2).unflatten(2, grid)
        return nn.functional.pixel_shuffle(values_BDhw, self.stride)
