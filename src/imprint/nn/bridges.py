"""What leads from an encoder's map to a decoder's first one, so that every place of the hole sees all of the context.

Shape suffixes: B images, N places of the encoder's map, M of the decoder's, D encoder width, E outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.nn.up_convolutions import start_narrow


class ChannelwiseBridge(nn.Module):
    r"""A fully connected layer within each channel, then a 1x1 convolution across them (arXiv 1604.07379, Sec. 3.1).

    y_bdm = sum_n A_dmn x_bnd, which takes D M N weights where a dense layer would take D^2 M N; then a convolution
    D -> E, batch norm and ReLU.

    Args:
        width: D.
        places: N.
        side: of the decoder's square map, M = side^2.
        outputs: E.
    """

    def __init__(self, width: int, places: int, side: int, outputs: int) -> None:
        super().__init__()
        self.side = side
        self.weight_DNM = nn.Parameter(torch.randn(width, places, side * side) * places**-0.5)
        self.mix = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        # Not DCGAN's .02: a narrow matrix before a batch norm only slows its own learning down.
        nn.init.normal_(self.mix.weight, std=width**-0.5)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return the decoder's first map (B, E, side, side)."""
        y_DBM = torch.bmm(x_BND.permute(2, 0, 1), self.weight_DNM.to(x_BND.dtype))
        map_BDss = y_DBM.transpose(0, 1).unflatten(2, (self.side, self.side))
        out: Tensor = self.norm(self.mix(map_BDss)).relu()
        return out


class DenseBridge(nn.Module):
    """All of the map to one code, batch norm, leaky ReLU, and a dense layer to the decoder's map (public code).

    The public code writes both as convolutions that cover the map.

    Args:
        width: D.
        places: N.
        side: of the decoder's square map.
        outputs: E.
        code: width of the code, the public nBottleneck.
    """

    def __init__(self, width: int, places: int, side: int, outputs: int, code: int) -> None:
        super().__init__()
        self.side, self.outputs = side, outputs
        self.narrow = nn.Linear(places * width, code, bias=False)
        self.code_norm = nn.BatchNorm1d(code)
        self.wide = nn.Linear(code, outputs * side * side, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        start_narrow(self)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return the decoder's first map (B, E, side, side)."""
        code_BK = nn.functional.leaky_relu(self.code_norm(self.narrow(x_BND.flatten(1))), 0.2)
        map_BEss = self.wide(code_BK).unflatten(1, (self.outputs, self.side, self.side))
        out: Tensor = self.norm(map_BEss).relu()
        return out
