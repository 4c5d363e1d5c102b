import math

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.colour_bins import annealed_mean, colour_bins, rebalancing, smoothed, soft_encode

skcolor = pytest.importorskip("skimage.color")
BINS = colour_bins()


def srgb_ab(count):
    """ab of random sRGB colours, half of them at the faces of the cube, by scikit-image."""
    rng = np.random.default_rng(0)
    rgb = rng.random((count, 3))
    rgb[: count // 2, :1] = np.round(rgb[: count // 2, :1])
    rgb = np.take_along_axis(rgb, rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1), axis=1)
    return torch.from_numpy(skcolor.rgb2lab(rgb)[:, 1:])


def encode(ab_P2, nearest=5, sigma=5.0, bins=BINS):
    return soft_encode(ab_P2, bins.centres_Q2, bins.candidates_GGM, grid=bins.grid, nearest=nearest, sigma=sigma)


def test_the_gamut_has_313_bins_on_the_grid():
    centres = BINS.centres_Q2
    assert centres.shape == (313, 2) and len(centres.unique(dim=0)) == 313
    assert (centres % 10 == 0).all() and centres.dtype == torch.float32
    order = centres[:, 0] * 1000 + centres[:, 1]
    assert (order.diff() > 0).all()
    assert centres[:, 0].min() == -90 and centres[:, 0].max() == 110
    assert centres[:, 1].min() == -110 and centres[:, 1].max() == 100


def test_every_colour_has_its_nearest_bin_in_gamut_and_no_bin_is_far_from_all_colours():
    ab = srgb_ab(20000)
    in_gamut = {tuple(c) for c in BINS.centres_Q2.long().tolist()}
    nearest = {tuple(c) for c in ((ab / 10).round() * 10).long().tolist()}
    assert nearest <= in_gamut and len(nearest) > 240
    assert torch.cdist(BINS.centres_Q2.double(), ab).min(1).values.max() < 16
    for outside in ((-90, -90), (120, 0), (-100, 0), (90, 90)):
        assert outside not in in_gamut


def test_soft_targets_equal_the_naive_search_over_all_bins():
    ab = srgb_ab(3000)
    for nearest in (1, 5):
        index, share = encode(ab, nearest)
        distance, expected = torch.cdist(
            ab, BINS.centres_Q2.double(), compute_mode="donot_use_mm_for_euclid_dist"
        ).topk(nearest, largest=False)
        assert torch.equal(index, expected)
        gauss = torch.exp(-distance.square() / (2 * 5.0**2))
        torch.testing.assert_close(share, gauss / gauss.sum(1, keepdim=True))


def test_more_neighbours_need_their_own_candidates():
    bins = colour_bins(10.0, 10)  # the public code's number
    ab = srgb_ab(2000)
    index, share = encode(ab, 10, bins=bins)
    expected = torch.cdist(ab, bins.centres_Q2.double(), compute_mode="donot_use_mm_for_euclid_dist").topk(
        10, largest=False
    )
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(share.sum(1), torch.ones(2000).double())
    assert torch.equal(bins.centres_Q2, BINS.centres_Q2)


def test_a_colour_on_a_bin_and_one_between_two():
    index, share = encode(torch.tensor([[0.0, 0.0], [5.0, 0.0]]))
    centres = BINS.centres_Q2[index]
    assert centres[0, 0].tolist() == [0, 0] and {tuple(c) for c in centres[1, :2].tolist()} == {(0, 0), (10, 0)}
    four = math.exp(-100 / 50)
    torch.testing.assert_close(share[0], torch.tensor([1.0, four, four, four, four]) / (1 + 4 * four))
    assert share.dtype == torch.float32 and share[1, 0] == share[1, 1]


def test_rebalancing_by_hand():
    p = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    raw = 1 / torch.tensor([0.3 + 0.125, 0.15 + 0.125, 0.05 + 0.125, 0.125], dtype=torch.float64)
    expectation = 0.6 * raw[0] + 0.3 * raw[1] + 0.1 * raw[2]
    weights = rebalancing(p, 0.5)
    torch.testing.assert_close(weights, raw / expectation)
    torch.testing.assert_close((p * weights).sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(rebalancing(p * 7, 0.5), weights)  # counts serve as well
    torch.testing.assert_close(rebalancing(p, 1.0), torch.ones(4).double())
    # The less of the uniform part, the more a rare colour counts.
    assert rebalancing(p, 0.1)[3] / rebalancing(p, 0.1)[0] > weights[3] / weights[0]


def test_smoothing_keeps_mass_and_spreads_it_in_the_plane():
    share = torch.zeros(313, dtype=torch.float64)
    middle = int((BINS.centres_Q2 == 0).all(1).nonzero())
    share[middle] = 1.0
    spread = smoothed(share, BINS.centres_Q2.double(), 5.0)
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0).double())
    beside = int((BINS.centres_Q2 == torch.tensor([10.0, 0.0])).all(1).nonzero())
    torch.testing.assert_close(spread[beside] / spread[middle], torch.tensor(math.exp(-2.0)).double())
    torch.testing.assert_close(smoothed(share, BINS.centres_Q2.double(), 0.1), share)


def test_annealed_mean_runs_from_the_mode_to_the_mean():
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 313, 3, 4, dtype=torch.float64)
    centres = BINS.centres_Q2.double()
    mean = torch.einsum("bqhw,qc->bchw", logits.softmax(1), centres)
    mode = centres[logits.argmax(1)].permute(0, 3, 1, 2)
    torch.testing.assert_close(annealed_mean(logits, centres, 1.0), mean)
    torch.testing.assert_close(annealed_mean(logits, centres, 1e-3), mode)
    p = logits.softmax(1) ** (1 / 0.38)  # Eq. 5 as it is written
    p = p / p.sum(1, keepdim=True)
    torch.testing.assert_close(annealed_mean(logits, centres), torch.einsum("bqhw,qc->bchw", p, centres))


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"lambda 0.0 must lie in \(0, 1\]"):
        rebalancing(torch.ones(3), 0.0)
    with pytest.raises(ConfigError, match="no colours were counted"):
        rebalancing(torch.zeros(3))
    with pytest.raises(ConfigError, match="temperature"):
        annealed_mean(torch.zeros(1, 313, 1, 1), BINS.centres_Q2, 0.0)
    with pytest.raises(ConfigError, match="grid of 1"):
        colour_bins(1.0)
    with pytest.raises(ConfigError, match="400 nearest of 313"):
        colour_bins(10.0, 400)
