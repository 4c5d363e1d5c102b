import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops import palette
from imprint.ops.palette import from_colours, kmeans_colours, nearest_colour, to_colours


def test_nearest_colour_equals_the_full_distance_table(monkeypatch):
    monkeypatch.setattr(palette, "CHUNK", 7)
    torch.manual_seed(0)
    pixels, colours = torch.randn(50, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    index, distance = nearest_colour(pixels, colours)
    table = torch.cdist(pixels, colours) ** 2
    assert torch.equal(index, table.argmin(1))
    torch.testing.assert_close(distance, table.min(1).values, rtol=1e-9, atol=1e-9)


def test_autocast_does_not_blur_colours():
    torch.manual_seed(0)
    pixels, colours = torch.randn(2000, 3), torch.randn(64, 3)
    plain = nearest_colour(pixels, colours)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_colour(pixels, colours)[0], plain)


def test_images_go_to_colours_and_back_in_raster_order():
    colours = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    tokens = torch.tensor([[0, 1, 2, 2, 1, 0]])
    images = from_colours(tokens, colours, (2, 3))
    assert images.shape == (1, 3, 2, 3) and images[0, :, 0, 1].tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(to_colours(images, colours), tokens)


def test_kmeans_finds_planted_clusters():
    torch.manual_seed(0)
    planted = torch.stack(torch.meshgrid(*[torch.tensor([-2.0, 2.0])] * 3, indexing="ij"), -1).view(-1, 3)
    pixels = planted.repeat_interleave(200, 0) + 0.1 * torch.randn(1600, 3)
    found = kmeans_colours(pixels, 8)
    assert torch.cdist(planted, found).min(1).values.max() < 0.05
    assert nearest_colour(planted, found)[0].unique().numel() == 8


def test_kmeans_is_determined_by_torchs_generator_and_improves_on_its_start():
    torch.manual_seed(0)
    pixels = torch.rand(3000, 3)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(kmeans_colours(pixels, 16))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    torch.manual_seed(1)
    start = kmeans_colours(pixels, 16, rounds=0)
    assert nearest_colour(pixels, runs[0])[1].mean() < 0.9 * nearest_colour(pixels, start)[1].mean()


def test_empty_clusters_move_to_far_pixels(monkeypatch):
    pixels = torch.cat([torch.randn(100, 3) * 0.01, torch.full((5, 3), 5.0)])
    # A start with all centres in one place: the others own nothing in the first round.
    monkeypatch.setattr(palette, "_spread_start", lambda pixels, count, _: torch.zeros(count, 3))
    found = kmeans_colours(pixels, 3)
    assert nearest_colour(pixels, found)[0].unique().numel() == 3
    assert torch.cdist(torch.full((1, 3), 5.0), found).min() < 1e-5


def test_flat_images_have_a_palette_too():
    found = kmeans_colours(torch.ones(50, 3), 8)
    assert torch.equal(found, torch.ones(8, 3))


@pytest.mark.parametrize("pixels", [torch.empty(0, 3), torch.full((4, 3), float("nan"))])
def test_no_pixels_and_damaged_ones_are_refused(pixels):
    with pytest.raises(ConfigError, match="kmeans_colours"):
        kmeans_colours(pixels, 2)
    with pytest.raises(ConfigError, match="do not fit"):
        nearest_colour(torch.zeros(4, 3), torch.zeros(4, 1))
