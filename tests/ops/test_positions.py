from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.positions import Style, interpolate_positions, sincos_2d


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 5), (7, 3)])
def test_sincos_is_the_formula(grid: tuple[int, int]) -> None:
    dim = 16
    table = sincos_2d(dim, grid)
    assert table.shape == (grid[0] * grid[1], dim) and table.dtype == torch.float64
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(dim // 4):
                omega = 10_000 ** (-i / (dim / 4))
                got = table[row * grid[1] + column]
                want = [
                    math.sin(column * omega),
                    math.cos(column * omega),
                    math.sin(row * omega),
                    math.cos(row * omega),
                ]
                assert [got[i + part * dim // 4].item() for part in range(4)] == pytest.approx(want, abs=1e-12)
    swapped = torch.cat([table[:, dim // 2 :], table[:, : dim // 2]], dim=1)
    assert torch.equal(sincos_2d(dim, grid, layout="mocov3"), swapped)
    with_cls = sincos_2d(dim, grid, cls=True)
    assert (with_cls[0] == 0).all() and torch.equal(with_cls[1:], table)


def test_wrong_width_or_layout() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_2d(10, (2, 2))
    with pytest.raises(ConfigError, match="mocov3"):
        sincos_2d(8, (2, 2), layout="moco3")  # type: ignore[arg-type]


@pytest.mark.parametrize("style", get_args(Style))
def test_resizing_keeps_prefix_constants_and_its_own_grid(style: Style) -> None:
    pos = torch.randn(1, 3 + 16, 6)
    assert interpolate_positions(pos, (4, 4), style, prefix=3) is pos
    for grid in [(7, 7), (2, 2), (3, 8), (5, 4)]:
        out = interpolate_positions(pos, grid, style, prefix=3)
        assert out.shape == (1, 3 + grid[0] * grid[1], 6)
        assert torch.equal(out[:, :3], pos[:, :3])
        flat = interpolate_positions(torch.ones(1, 17, 2), grid, style)
        torch.testing.assert_close(flat, torch.ones_like(flat), atol=1e-5, rtol=0)
    half = interpolate_positions(pos.bfloat16(), (5, 5), style, prefix=3)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("style", get_args(Style))
def test_columns_and_rows_are_not_confused(style: Style) -> None:
    """A ramp along the columns stays constant along the rows, from a non-square source too."""
    ramp = torch.arange(6.0, dtype=torch.float64).expand(4, 6).reshape(1, 24, 1)
    out = interpolate_positions(ramp, (8, 9), style, prefix=0, source=(4, 6)).view(8, 9)
    torch.testing.assert_close(out, out[:1].expand(8, 9), atol=1e-9, rtol=0)
    assert (out[0].diff() > 0).all()


def test_wrong_grids_are_named() -> None:
    with pytest.raises(ConfigError, match="source="):
        interpolate_positions(torch.zeros(1, 13, 4), (2, 2))
    with pytest.raises(ConfigError, match="dinov2_size"):
        interpolate_positions(torch.zeros(1, 17, 4), (2, 2), style="dinov2-size")  # type: ignore[arg-type]


def test_positions_of_a_video_are_waves_of_time_row_and_column():
    from imprint.ops.positions import sincos_3d

    for width in (12, 16):  # a multiple of 6, and one where the last axis is cut off
        table = sincos_3d(width, (3, 2, 4))
        half = -(-width // 6)
        for place in range(24):
            waves = []
            for where in (place // 8, place // 4 % 2, place % 4):
                angles = [where / 10_000 ** (i / half) for i in range(half)]
                waves += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[place].tolist() == pytest.approx(waves[:width])
