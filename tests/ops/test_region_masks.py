import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.region_masks import block_regions, centre_box, noise_regions

INDEX = torch.arange(64)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_random_shapes_have_the_area_that_was_asked_for(side):
    masks = noise_regions(7, INDEX, side, cells=7.68, share=(0.2, 0.25))
    assert masks.shape == (64, 1, side, side) and masks.dtype == torch.bool
    area = masks.flatten(1).float().mean(1)
    assert 0.2 - 1 / side**2 <= area.min() and area.max() <= 0.25
    assert area.max() - area.min() > 0.03  # drawn, not fixed


def test_random_shapes_are_smooth_and_lie_everywhere():
    masks = noise_regions(7, torch.arange(512), 32, cells=7.68, share=(0.2, 0.25)).float()
    neighbours = (masks[..., 1:] == masks[..., :-1]).float().mean()
    alone = 0.225**2 + 0.775**2
    assert neighbours > alone + 0.15  # pixels beside each other agree far more often than independent ones
    where = masks.mean((0, 1))
    assert (where - 0.225).abs().max() < 0.09  # five deviations of a share over 512 images
    coarse = noise_regions(7, INDEX, 32, cells=2.0, share=(0.2, 0.25)).float()
    assert (coarse[..., 1:] == coarse[..., :-1]).float().mean() > neighbours


def test_regions_belong_to_sample_and_key_not_to_the_place_in_the_batch():
    def both(key, index):
        return (
            noise_regions(key, index, 32, cells=7.68, share=(0.2, 0.25)),
            block_regions(key, index, 32, count=8, sides=(0.125, 0.25), most=0.25),
        )

    for whole, part, other in zip(both(1, INDEX), both(1, INDEX[10:20]), both(2, INDEX), strict=True):
        assert torch.equal(whole[10:20], part)
        assert not torch.equal(whole, other)
        assert len({tuple(m.flatten().tolist()) for m in whole}) == 64


def test_blocks_are_unions_of_squares_below_a_quarter():
    one = block_regions(3, INDEX, 32, count=1, sides=(0.125, 0.25), most=0.25)
    sides = []
    for mask in one[:, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)
        assert height == width and int(mask.sum()) == height * width
        sides.append(height)
    assert min(sides) == 4 and max(sides) == 7
    many = block_regions(3, INDEX, 32, count=8, sides=(0.125, 0.25), most=0.25)
    area = many.flatten(1).float().mean(1)
    assert area.max() <= 0.25 and area.mean() > 0.18
    full = block_regions(3, INDEX, 32, count=8, sides=(0.25, 0.25), most=0.0625)
    assert (full.flatten(1).sum(1) == 64).all()  # one square is all that fits


def test_the_centre_box():
    assert centre_box(128, 0.5) == (32, 96)
    assert centre_box(32, 0.5) == (8, 24)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001, 1.5])
def test_a_hole_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="hole"):
        centre_box(32, share)


def test_impossible_regions_are_refused():
    with pytest.raises(ConfigError, match="regions of"):
        noise_regions(0, INDEX, 32, cells=7.68, share=(0.5, 0.2))
    with pytest.raises(ConfigError, match="largest block"):
        block_regions(0, INDEX, 32, count=3, sides=(0.2, 0.6), most=0.25)
