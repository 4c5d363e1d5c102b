"""Transposed convolutions that paint an image from a small map, and convolutions that look at one, mirror images.

Shape suffixes: B images, C channels, s side of the smallest map, S side of the image, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from imprint.core.errors import ConfigError

LARGEST_START = 16
"""Sides of the smallest map beyond this are refused: too little would be left to (un)fold."""


def start_side(side: int) -> int:
    """Return the side s of the smallest map: halved from `side` while it is even and above 4.

    Raises:
        ConfigError: for sides that halve too rarely.
    """
    start = side
    while start > 4 and start % 2 == 0:
        start //= 2
    if start > LARGEST_START or start == side:
        raise ConfigError(
            f"pictures of {side} pixels cannot be halved down to a map of at most {LARGEST_START}; choose an image "
            "size that is a multiple of 16, such as 32, 64, 96, 128 or 224."
        )
    return start


def doublings(small: int, large: int) -> int | None:
    """Return k >= 1 with small * 2^k = large, or None."""
    ratio = large // small
    power = ratio.bit_length() - 1
    return power if power >= 1 and small << power == large else None


def widths(steps: int, width: int) -> list[int]:
    """Return the widths of `steps` halvings, finest first: from W, doubled at each of the last three (DCGAN's plan)."""
    return [width * 2 ** min(3, max(0, i - max(0, steps - 4))) for i in range(steps)]


def start_narrow(module: nn.Module) -> None:
    """Start as DCGAN does (public code): weights N(0, .02), batch norms' gains N(1, .02), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)
            nn.init.zeros_(part.bias)


class UpConvolutions(nn.Module):
    """(B, W_0, s, s) -> (B, C, S, S): 4x4 transposed convolutions of stride 2, batch norm and ReLU between them.

    The decoder of context encoders (arXiv 1604.07379, public code) from its 4x4 map on. No layer has a bias: the
    public code sets them to zero before every pass.

    Args:
        small: s.
        large: S = s 2^k.
        channels: C.
        width: W of the finest map; `inputs` says how many channels the first one has.

    Raises:
        ConfigError: when no doublings lead from s to S.
    """

    def __init__(self, small: int, large: int, channels: int, width: int) -> None:
        super().__init__()
        steps = doublings(small, large)
        if steps is None:
            raise ConfigError(f"no doublings lead from maps of {small} to pictures of {large} pixels.")
        plan = widths(steps, width)[::-1]
        self.inputs = plan[0]
        parts: list[nn.Module] = []
        for wide, narrow in zip(plan, [*plan[1:], channels], strict=True):
            parts.append(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False))
            parts += [nn.BatchNorm2d(narrow), nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-2])
        start_narrow(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the picture."""
        out: Tensor = self.layers(x)
        return out


class CodeDecoder(nn.Module):
    """(B, L) -> (B, C, S, S): a dense layer to a small map, batch norm, ReLU, then `UpConvolutions`.

    Args:
        code: L.
        side: S.
        channels: C.
        width: of the finest map.

    Raises:
        ConfigError: for a side that does not halve often enough.
    """

    def __init__(self, code: int, side: int, channels: int, width: int) -> None:
        super().__init__()
        self.small = start_side(side)
        self.up = UpConvolutions(self.small, side, channels, width)
        self.dense = nn.Linear(code, self.up.inputs * self.small**2, bias=False)
        self.norm = nn.BatchNorm2d(self.up.inputs)
        start_narrow(self)

    def forward(self, code_BL: Tensor) -> Tensor:
        """Return the picture."""
        map_BWss = self.dense(code_BL).unflatten(1, (self.up.inputs, self.small, self.small))
        out: Tensor = self.up(self.norm(map_BWss).relu())
        return out
