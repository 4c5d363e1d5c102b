"""All randomness of the views of a batch, drawn at once from counter keys; no engine and no device in sight.

The parameters of copy v of view `name` of sample i in epoch e are a pure function of (seed, e, i, name, v): the words
go through `core.rng.key`, and column n of the record below is uniform number n of that key. Nothing depends on the
batch, the thread, the process or the engine. The record is plain numbers, so a device engine moves `look_BVP` and the
boxes to its device as they are.

A crop depends on the size of its image, which is known only when the header has been read. The record therefore holds
the ten candidate area shares and aspect ratios and one position; `boxes.boxes` turns them into pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imprint.core.rng import U64, key, uniforms
from imprint.data.views import CenterCrop, Crop, Look, Operations, View
from imprint.ops.rand_augment import OPERATIONS

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

TRIES: Final = 10

BRIGHTNESS: Final = 0
CONTRAST: Final = 1
SATURATION: Final = 2
HUE: Final = 3
NO_OPERATION: Final = -1

# Columns of look_BVP.
FLIP: Final = 0
FIRST_OPERATION: Final = 1  # four columns: the jitter operations in the order they are applied
FIRST_FACTOR: Final = 5  # four columns: brightness, contrast and saturation factors, hue shift in turns
GREY: Final = 9
SIGMA: Final = 10
SOLARISE: Final = 11
LOOK_COLUMNS: Final = 12

# Columns of the uniforms behind them.
_SHARE, _ASPECT, _PLACE, _FLIP, _JITTER, _ORDER, _FACTOR, _GREY, _BLUR, _SIGMA, _SOLARISE, _END = (
    0, 10, 20, 22, 23, 24, 25, 29, 30, 31, 32, 33,
)  # fmt: skip

_ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.float32)


@dataclass(frozen=True)
class ViewDraws:
    """What was drawn for one view of a batch: B samples, V copies, T = 10 tries.

    Attributes:
        shares_BVT: candidate shares of the image area, float64.
        aspects_BVT: candidate width/height ratios, float64; 0 keeps the image's own.
        place_BV2: vertical and horizontal position of the crop among all possible ones, float64 in [0, 1).
        look_BVP: float32, P = 12 columns: flip (0 or 1); four jitter operations in order (0 brightness, 1 contrast,
            2 saturation, 3 hue, -1 nothing); brightness, contrast and saturation factors and the hue shift in turns;
            grey (0 or 1); blur's sigma in pixels (0: no blur); solarise (0 or 1).
        operations: RandAugment by copy, for those that have it: operations (B, N) and strengths (B, N).
    """

    shares_BVT: F64
    aspects_BVT: F64
    place_BV2: F64
    look_BVP: F32
    operations: dict[int, tuple[npt.NDArray[np.int64], F32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch, by view name."""

    by_view: dict[str, ViewDraws]

    def __getitem__(self, name: str) -> ViewDraws:
        return self.by_view[name]


def draw(views: Sequence[View], seed: int, epoch: int, index_B: npt.ArrayLike, *, channels: int = 3) -> Draws:
    """Draw the parameters of all `views` of the samples `index_B`.

    Saturation, hue and grey are never drawn as active when `channels` is not 3.
    """
    index_B = np.asarray(index_B, dtype=np.int64).reshape(-1)
    return Draws({view.name: _draw_view(view, seed, epoch, index_B, channels) for view in views})


def _draw_view(view: View, seed: int, epoch: int, index_B: npt.NDArray[np.int64], channels: int) -> ViewDraws:
    batch, copies = index_B.size, view.count
    looks = [view.look_of(copy) for copy in range(copies)]
    if isinstance(view.crop, CenterCrop) and not any(_is_active(look) for look in looks):
        return ViewDraws(
            np.empty((batch, copies, 0)),
            np.empty((batch, copies, 0)),
            np.empty((batch, copies, 2)),
            _plain(batch, copies),
        )
    keys_BV = key(seed, epoch, index_B[:, None], view.name, np.arange(copies)[None, :])
    u = uniforms(keys_BV, _END)
    shares, aspects = _draw_crop(view.crop, u)
    look_BVP = np.empty((batch, copies, LOOK_COLUMNS), dtype=np.float32)
    if view.looks:
        for copy, look in enumerate(looks):
            _draw_look(look, u[:, copy], look_BVP[:, copy], channels)
    else:
        _draw_look(view.look, u, look_BVP, channels)
    operations = {
        copy: drawn_operations(key(keys_BV[:, copy, None], "rand-augment", np.arange(wanted.number)[None, :]), wanted)
        for copy, wanted in enumerate(look.operations for look in looks)
        if wanted is not None
    }
    return ViewDraws(shares, aspects, np.ascontiguousarray(u[..., _PLACE : _PLACE + 2]), look_BVP, operations)


def drawn_operations(keys_BN: U64, wanted: Operations) -> tuple[npt.NDArray[np.int64], F32]:
    """Return RandAugment's draws for B images with N keys each, one per operation.

    Returns:
        Numbers in `OPERATIONS`, int64 (B, N), -1 for none, and signed strengths, float32 (B, N) in [-1, 1].
    """
    u = uniforms(keys_BN, 5)
    gauss = np.sqrt(-2.0 * np.log1p(-u[..., 0])) * np.cos(2.0 * math.pi * u[..., 1])
    level = np.clip(wanted.magnitude + wanted.spread * gauss, 0.0, 10.0) / 10.0
    strength = np.where(u[..., 2] < 0.5, -level, level).astype(np.float32)
    return np.where(u[..., 3] < wanted.probability, (u[..., 4] * len(OPERATIONS)).astype(np.int64), -1), strength


def _draw_crop(crop: Crop | CenterCrop, u: F64) -> tuple[F64, F64]:
    if isinstance(crop, CenterCrop):
        empty = np.empty((*u.shape[:-1], 0))
        return empty, empty
    low, high = crop.scale
    shares = low + (high - low) * u[..., _SHARE : _SHARE + TRIES]
    ratio: Any = crop.ratio
    if ratio is None:
        return shares, np.zeros_like(shares)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    return shares, np.exp(low + (high - low) * u[..., _ASPECT : _ASPECT + TRIES])


def _draw_look(look: Look, u: F64, out: F32, channels: int) -> None:
    colour = channels == 3
    out[..., FLIP] = u[..., _FLIP] < look.flip
    order = _ORDERS[(u[..., _ORDER] * len(_ORDERS)).astype(np.intp)]
    active = np.array(
        [look.brightness > 0, look.contrast > 0, colour and look.saturation > 0, colour and look.hue > 0],
        dtype=np.bool_,
    )
    applied = (u[..., _JITTER, None] < look.jitter) & active[order.astype(np.intp)]
    out[..., FIRST_OPERATION : FIRST_OPERATION + 4] = np.where(applied, order, np.float32(NO_OPERATION))
    for n, strength in enumerate((look.brightness, look.contrast, look.saturation)):
        low = max(0.0, 1.0 - strength)
        out[..., FIRST_FACTOR + n] = low + (1.0 + strength - low) * u[..., _FACTOR + n]
    out[..., FIRST_FACTOR + HUE] = look.hue * (2.0 * u[..., _FACTOR + HUE] - 1.0)
    out[..., GREY] = (u[..., _GREY] < look.grey) & colour
    low, high = look.blur_sigma
    out[..., SIGMA] = np.where(u[..., _BLUR] < look.blur, low + (high - low) * u[..., _SIGMA], 0.0)
    out[..., SOLARISE] = u[..., _SOLARISE] < look.solarise


def _is_active(look: Look) -> bool:
    chances = (look.flip, look.jitter, look.grey, look.blur, look.solarise)
    return look.operations is not None or any(chance > 0 for chance in chances)


def _plain(batch: int, copies: int) -> F32:
    look_BVP = np.zeros((batch, copies, LOOK_COLUMNS), dtype=np.float32)
    look_BVP[..., FIRST_OPERATION : FIRST_OPERATION + 4] = NO_OPERATION
    look_BVP[..., FIRST_FACTOR : FIRST_FACTOR + 3] = 1.0
    return look_BVP
