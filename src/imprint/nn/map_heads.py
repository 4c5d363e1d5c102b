"""Linear heads over feature maps, several learning rates side by side.

Shapes: B images, D_i width of map i, h_i x w_i its grid, G heads trained together, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearMapHeads(nn.Module):
    """BatchNorm without affine, then G linear maps to classes: maps (B, D_i, h_i, w_i) -> logits (G, B, K, h, w).

    The head of the linear segmentation protocol (DINOv2, arXiv 2304.07193, Sec. 7.4; its public code puts a BatchNorm
    before the 1x1 convolution). An affine would be absorbed by the linear map. A linear map of maps that are upsampled
    to the finest grid and concatenated equals the sum of one linear map per map, each upsampled after it, because
    bilinear upsampling is linear and keeps constants; only K channels are therefore upsampled and never D_i.

    Args:
        widths: D_i of the maps.
        classes: K.
        heads: G.
    """

    def __init__(self, widths: Sequence[int], classes: int, heads: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in widths)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(classes, sum(widths))) for _ in range(heads))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(classes)) for _ in range(heads))
        self.widths = list(widths)

    def each(self, maps: Sequence[Tensor], together: int = 1) -> Iterator[Tensor]:
        """Yield logits (g, B, K, h, w), float32, of `together` heads at a time, on the grid of the first (finest) map.

        Heads that come together share the reading of the maps; what they need at once is g B K h w numbers.
        """
        normed = [norm(x.float()) for norm, x in zip(self.norms, maps, strict=True)]
        for start in range(0, len(self.weights), together):
            weight = torch.cat(list(self.weights)[start : start + together])
            bias = torch.cat(list(self.biases)[start : start + together])
            first, *others = weight.split(self.widths, 1)
            out = F.conv2d(normed[0], first[:, :, None, None], bias)
            for part, x in zip(others, normed[1:], strict=True):
                coarse = F.conv2d(x, part[:, :, None, None])
                out = out + F.interpolate(coarse, out.shape[2:], mode="bilinear", align_corners=False)
            yield out.unflatten(1, (-1, self.classes)).transpose(0, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits of all heads, (G, B, K, h, w)."""
        return next(self.each(maps, len(self.weights)))

    def only(self, g: int) -> LinearMapHeads:
        """Return a copy with head `g` alone."""
        twin = LinearMapHeads(self.widths, self.classes)
        twin.norms.load_state_dict(self.norms.state_dict())
        with torch.no_grad():
            twin.weights[0].copy_(self.weights[g])
            twin.biases[0].copy_(self.biases[g])
        return twin.to(self.weights[g].device).train(self.training)
