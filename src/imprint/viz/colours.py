"""Colours of charts and maps, legible on light and dark grounds and told apart by colour-blind readers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CATEGORIES: tuple[str, ...] = (
    "#3b7dd8", "#e07b28", "#2f9e5f", "#c9485b", "#8a63c9", "#17a2b0", "#b08c1a", "#d564a6", "#6b8e23", "#7c8794",
)  # fmt: skip

_HEAT = np.array(
    [(12, 8, 38), (58, 15, 110), (120, 28, 109), (187, 55, 84), (237, 105, 37), (252, 181, 36), (252, 254, 190)],
    dtype=np.float64,
)


def category(i: int) -> str:
    """Return the colour of class `i`: ten hand-picked ones, then hues a golden angle apart."""
    if i < len(CATEGORIES):
        return CATEGORIES[i]
    hue = (i * 137.508) % 360
    return _hex(_hsl(hue / 360, 0.55, 0.42 + 0.16 * (i % 2)))


def rgb(colour: str) -> tuple[int, int, int]:
    """Return the channels of a `#rrggbb` colour."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def heat(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Map values in [0, 1] to a dark-to-bright ramp, uint8 (..., 3)."""
    x = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(x.astype(np.int64), len(_HEAT) - 2)
    share = (x - low)[..., None]
    return np.asarray(np.rint(_HEAT[low] * (1 - share) + _HEAT[low + 1] * share), dtype=np.uint8)


def _hsl(h: float, s: float, light: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hls_to_rgb(h, light, s)


def _hex(channels: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in channels)
