r"""sRGB to CIE L*a*b* and back, batched on the device (D65, 2 degree observer).

Shape suffixes: B images, H x W pixels; any dimensions may stand in their place, the channels third from the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import ConfigError

# IEC 61966-2-1 primaries to XYZ, and the white of D65: the digits that scikit-image uses, whose Lab the public code of
# colorization is built on.
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
# As numbers: a small tensor made on the host would wait for all work queued on a GPU.
_TO_WHITE: list[list[float]] = [[v / w for v in row] for row, w in zip(_TO_XYZ, _WHITE, strict=True)]
_FROM_WHITE: list[list[float]] = torch.tensor(_TO_WHITE, dtype=torch.float64).inverse().tolist()


@torch.no_grad()
def rgb_to_lab(rgb: Tensor) -> Tensor:
    r"""Return L in [0, 100], a and b (in about [-87, 99] and [-108, 95]) of sRGB colours.

    Linear light u = ((c + 0.055) / 1.055)^2.4 above 0.04045, c / 12.92 below; (X, Y, Z) = M u over the white;
    f(t) = t^(1/3) above 0.008856, 7.787 t + 16 / 116 below; L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)),
    b = 200 (f(Y) - f(Z)) (CIE 15:2004, 8.2.1).

    Args:
        rgb: (..., 3, H, W), sRGB in [0, 1]; values outside are clamped.

    Returns:
        (..., 3, H, W), float32 (float64 for float64), also within autocast.

    Raises:
        ConfigError: for other than three channels.
    """
    x = _prepared("rgb_to_lab", rgb).clamp(0, 1)
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055).pow(2.4), x / 12.92)
    xyz = _mixed(linear, _TO_WHITE)
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-12).pow(1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f.unbind(-3)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -3)


@torch.no_grad()
def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB in [0, 1] of Lab colours, the inverse of `rgb_to_lab`; colours outside sRGB are clamped.

    Args:
        lab: (..., 3, H, W).

    Returns:
        (..., 3, H, W), float32 (float64 for float64), also within autocast.

    Raises:
        ConfigError: for other than three channels.
    """
    lightness, a, b = _prepared("lab_to_rgb", lab).unbind(-3)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, (fy - b / 200).clamp_min(0)], -3)
    xyz = torch.where(f > 0.2068966, f.pow(3), (f - 16 / 116) / 7.787)
    linear = _mixed(xyz, _FROM_WHITE)
    out = torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-12).pow(1 / 2.4) - 0.055, 12.92 * linear)
    return out.clamp(0, 1)


def _prepared(name: str, x: Tensor) -> Tensor:
    if x.ndim < 3 or x.shape[-3] != 3:
        raise ConfigError(f"{name}: {tuple(x.shape)} has no three channels third from the end; colours are needed.")
    return x if x.dtype == torch.float64 else x.float()


def _mixed(x: Tensor, matrix: list[list[float]]) -> Tensor:
    """Apply a 3 x 3 matrix to the channels: sums of products, whatever reduced precision a matmul would take."""
    first, second, third = x.unbind(-3)
    return torch.stack([row[0] * first + row[1] * second + row[2] * third for row in matrix], -3)
