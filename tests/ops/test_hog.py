import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.hog import hog, hog_from_patches, hog_patches, hog_picture


def stripes(angle: float, side: int = 32) -> torch.Tensor:
    """A wave whose gradient points along (cos angle, sin angle) in (x, y)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.sin(0.35 * (x * math.cos(angle) + y * math.sin(angle))).expand(1, 3, -1, -1).double()


@pytest.mark.parametrize("degrees", [7, 33, 58, 98, 111, 175])
def test_a_wave_fills_the_bin_of_its_direction(degrees: int) -> None:
    histogram = hog(stripes(math.radians(degrees)))[:, :, :, 1:-1, 1:-1].mean((0, 1, 3, 4))  # away from the borders
    # atan2(dx, dy) counts from the y axis.
    expected = int(((90 - degrees) % 180) / 20)
    assert int(histogram.argmax()) == expected and histogram[expected] > 0.8


def test_every_histogram_has_length_one_and_flat_cells_none() -> None:
    out = hog(torch.randn(2, 3, 24, 40))
    assert out.shape == (2, 3, 9, 3, 5) and out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=2), torch.ones(2, 3, 3, 5))
    assert hog(torch.full((1, 1, 16, 16), 3.0)).abs().max() == 0
    assert hog(torch.randn(1, 1, 16, 16, dtype=torch.bfloat16)).dtype == torch.float32


def test_light_and_its_negative_say_the_same() -> None:
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(hog(image), hog(-3.0 * image + 5.0))


def test_patches_keep_the_order_channel_bin_row_column() -> None:
    cells = torch.arange(2 * 3 * 9 * 4 * 6).view(2, 3, 9, 4, 6).float()
    rows = hog_patches(cells, 2)
    assert rows.shape == (2, 6, 3 * 9 * 4)
    torch.testing.assert_close(rows[1, 4].view(3, 9, 2, 2), cells[1, :, :, 2:4, 2:4])  # second row, second column
    torch.testing.assert_close(hog_from_patches(rows, (2, 3), 3, 9, 2), cells)


def test_pictures_draw_the_line_along_the_edge() -> None:
    vertical_edge = hog_picture(hog(stripes(0.0)))  # light changes along x
    assert vertical_edge.shape == (1, 1, 60, 60) and 0 <= vertical_edge.min() <= vertical_edge.max() <= 1
    cell = vertical_edge[0, 0, 15:30, 15:30]
    assert cell[:, 6:9].sum() > 4 * cell[6:9, :].sum() / 2 > 0
    assert cell[2, 6:9].max() > 0.3 > cell[6:9, 2].max()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="divides both sides"):
        hog(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ConfigError, match="do not make patches"):
        hog_patches(torch.zeros(1, 3, 9, 3, 4), 2)
