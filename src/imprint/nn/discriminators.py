"""Networks that tell real samples from made ones: of pictures, and of codes.

Shape suffixes: B samples, C channels, S side, L width of a code.
"""

from __future__ import annotations

from torch import Tensor, nn

from imprint.nn.up_convolutions import doublings, start_narrow, start_side, widths


class ImageDiscriminator(nn.Module):
    """(B, C, S, S) -> logits (B,): 4x4 convolutions of stride 2 down to a small map, then one over all of it.

    DCGAN's, as in the public code of context encoders (arXiv 1604.07379): leaky ReLU of .2, batch norm after all
    convolutions but the first and last, no biases.

    Args:
        channels: C.
        side: S.
        width: of the first convolution; doubled up to eight times that.

    Raises:
        ConfigError: for a side that does not halve often enough.
    """

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        small = start_side(side)
        plan = widths(doublings(small, side) or 0, width)
        parts: list[nn.Module] = []
        for before, after in zip([channels, *plan[:-1]], plan, strict=True):
            parts.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False))
            parts += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        del parts[1]
        self.layers = nn.Sequential(*parts, nn.Conv2d(plan[-1], 1, small, bias=False))
        start_narrow(self)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Return logits, positive for real."""
        out: Tensor = self.layers(x_BCSS).flatten()
        return out


class CodeDiscriminator(nn.Module):
    """(B, L) -> logits (B,): two hidden layers with ReLU (adversarial autoencoders, arXiv 1511.05644).

    Args:
        code: L.
        width: of the hidden layers.
        scale: codes are divided by it, so that priors of any spread enter alike.
    """

    def __init__(self, code: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Linear(code, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, code_BL: Tensor) -> Tensor:
        """Return logits, positive for samples of the prior."""
        out: Tensor = self.layers(code_BL / self.scale).flatten()
        return out
