"""Vector operations against numpy."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from imprint.data.simd import transpose_tile, weigh_16, weigh_64


@numba.njit
def transposed(source, at, step, target, to, to_step):  # type: ignore[no-untyped-def]
    transpose_tile(source, at, step, target, to, to_step)


@numba.njit
def weighed(wide, source, at, pitch, weight, target, to):  # type: ignore[no-untyped-def]
    if wide:
        weigh_64(source, at, pitch, weight, weight.size, target, to)
    else:
        weigh_16(source, at, pitch, weight, weight.size, target, to)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tile_is_transposed_and_nothing_else_touched(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, np.iinfo(dtype).max, 40 * 33 + 5, dtype=dtype)
    target = np.zeros(500, dtype)
    transposed(source, 5 + 3 * 33 + 2, 33, target, 7, 20)
    tile = source[5:].reshape(40, 33)[3:19, 2:18]
    assert np.array_equal(target[7 : 7 + 320].reshape(16, 20)[:, :16], tile.T)
    assert target.sum(dtype=np.int64) == tile.sum(dtype=np.int64)
    transposed(source, 5 + 18 * 33 + 2, -33, target, 7, 20)  # a negative step turns the tile over
    assert np.array_equal(target[7 : 7 + 320].reshape(16, 20)[:, :16], tile[::-1].T)


@pytest.mark.parametrize("taps", [1, 2, 3, 5, 12, 61])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_weighted_rows(dtype: Any, wide: bool, taps: int) -> None:
    rng = np.random.default_rng(taps)
    lanes, pitch, bound = (64 if wide else 16), 77, int(np.iinfo(dtype).max)
    source = rng.integers(0, bound, 3 + pitch * taps + 64, dtype=dtype, endpoint=True)
    exact = rng.random(taps) - 0.1
    weight = np.round(exact / exact.sum() * 16384).astype(np.int16)
    target = np.zeros(100, dtype)
    weighed(wide, source, 3, pitch, weight, target, 9)
    rows = np.stack([source[3 + k * pitch :][:lanes] for k in range(taps)]).astype(np.float64)
    expected = np.clip((weight[:, None] / 16384.0 * rows).sum(0), 0, bound)
    assert np.abs(target[9 : 9 + lanes] - expected).max() <= 0.5 + (0.02 * taps**0.5 + 0.04 if bound == 255 else 0.1)
    assert not target[:9].any() and not target[9 + lanes :].any()


def test_overshoot_is_clamped() -> None:
    weight = np.array([-4000, 24384, -4000], np.int16)
    rows = np.zeros((3, 16), np.uint8)
    rows[1] = 255
    target = np.zeros(16, np.uint8)
    weighed(False, rows.reshape(-1), 0, 16, weight, target, 0)
    assert (target == 255).all()
    weighed(False, (255 - rows).reshape(-1), 0, 16, weight, target, 0)
    assert (target == 0).all()
