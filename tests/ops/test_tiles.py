import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.tiles import cut_tiles, lay_out, normalise_tiles, reorder, whole_steps


def test_whole_steps_stay_in_bounds_and_are_uniform():
    drawn = whole_steps(torch.rand(20_000), 6)
    assert drawn.min() == 0 and drawn.max() == 6 and drawn.dtype == torch.int64
    counts = torch.bincount(drawn).double()
    assert ((counts - 20_000 / 7).square() / (20_000 / 7)).sum() < 30  # chi square, 6 degrees of freedom
    assert whole_steps(torch.tensor([1 - 2.0**-24]), 10**6) == 10**6


@pytest.mark.parametrize(("size", "grid", "side", "shifted"), [(32, 3, 8, False), (25, 2, 9, True), (32, 3, 10, False)])
def test_tiles_are_those_of_a_loop(size, grid, side, shifted):
    images = torch.randn(4, 3, size, size)
    cell = size // grid
    margin = (size - grid * cell) // 2
    jitter = torch.randint(0, cell - side + 1, (4, grid**2, 2))
    shift = torch.randint(-2, 3, (4, grid**2, 3, 2)) if shifted else None
    tiles = cut_tiles(images, grid, side, jitter, shift)
    assert tiles.shape == (4, grid**2, 3, side, side)
    for b in range(4):
        for n in range(grid**2):
            for c in range(3):
                dy, dx = (0, 0) if shift is None else shift[b, n, c].tolist()
                for y in range(side):
                    for x in range(side):
                        row = margin + n // grid * cell + int(jitter[b, n, 0]) + y + dy
                        column = margin + n % grid * cell + int(jitter[b, n, 1]) + x + dx
                        row, column = min(max(row, 0), size - 1), min(max(column, 0), size - 1)
                        assert tiles[b, n, c, y, x] == images[b, c, row, column]


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="11 px"):
        cut_tiles(torch.zeros(1, 3, 32, 32), 3, 11, torch.zeros(1, 9, 2, dtype=torch.long))


def test_each_tile_is_normalised_by_itself():
    tiles = torch.randn(2, 4, 3, 8, 8) * torch.rand(2, 4, 1, 1, 1) * 5 + torch.randn(2, 4, 1, 1, 1)
    out = normalise_tiles(tiles).flatten(2)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(-1, correction=0), torch.ones(2, 4))
    brighter = normalise_tiles(tiles * 3 + 1)  # nothing of brightness or contrast is left
    torch.testing.assert_close(brighter, normalise_tiles(tiles), atol=1e-4, rtol=1e-4)
    flat = normalise_tiles(torch.full((1, 1, 3, 4, 4), 0.7) + 1e-4 * torch.randn(1, 1, 3, 4, 4))
    assert flat.abs().max() < 0.1


def test_reordered_tiles_come_back():
    tiles = torch.randn(3, 9, 2)
    order = torch.stack([torch.randperm(9) for _ in range(3)])
    shown = reorder(tiles, order)
    for b in range(3):
        for place in range(9):
            assert torch.equal(shown[b, place], tiles[b, order[b, place]])
    assert torch.equal(reorder(shown, order.argsort(1)), tiles)


def test_layout_puts_tiles_in_their_cells():
    images = torch.randn(2, 3, 24, 24)
    tiles = cut_tiles(images, 3, 6, torch.ones(2, 9, 2, dtype=torch.long))
    picture = lay_out(tiles, 3, 8)
    kept = picture != 0
    assert picture.shape == images.shape and torch.equal(picture[kept], images[kept])
    assert kept.float().mean() == pytest.approx((6 / 8) ** 2)
