import itertools
import math

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.permutations import all_permutations, hamming_distances, permutation_set


@pytest.mark.parametrize("places", [1, 4, 6])
def test_all_permutations_are_those_of_itertools(places):
    assert all_permutations(places).tolist() == [list(p) for p in itertools.permutations(range(places))]


def test_distances_are_those_of_a_double_loop():
    rows = torch.stack([torch.randperm(6) for _ in range(12)]).unique(dim=0)
    found = [int((a != b).sum()) for a, b in itertools.permutations(rows, 2)]
    least, mean = hamming_distances(rows)
    assert least == min(found) and mean == pytest.approx(sum(found) / len(found))


@pytest.mark.parametrize("spread", ["mean", "min"])
def test_each_choice_is_the_farthest_of_all_that_are_left(spread):
    """The greedy algorithm with a loop over everything."""
    chosen = permutation_set(5, 20, seed=3, spread=spread).numpy()
    every = np.array(list(itertools.permutations(range(5))))
    for n in range(1, len(chosen)):
        before = chosen[:n]
        left = np.array([p for p in every if not (p == before).all(1).any()])
        distances = (left[:, None] != before).sum(-1)
        own = (chosen[n] != before).sum(-1)
        keys = [(d.sum(), d.min()) if spread == "mean" else (d.min(), d.sum()) for d in distances]
        assert ((own.sum(), own.min()) if spread == "mean" else (own.min(), own.sum())) == max(keys)


@pytest.mark.parametrize("spread", ["mean", "min"])
def test_nine_places_are_spread_wider_than_by_chance(spread):
    chosen = permutation_set(9, 100, spread=spread)
    assert chosen.shape == (100, 9) and chosen.dtype == torch.int64
    assert torch.equal(chosen.sort(1).values, torch.arange(9).expand(100, 9))
    assert len(chosen.unique(dim=0)) == 100
    least, mean = hamming_distances(chosen)
    chance = []
    for seed in range(5):
        drawn = np.random.default_rng(seed).permuted(np.tile(np.arange(9), (100, 1)), axis=1)
        chance.append(hamming_distances(torch.from_numpy(drawn)))
    assert mean > max(m for _, m in chance)
    assert mean == pytest.approx(8.08, abs=0.01)  # Table 4 of the paper; its minimum is 2, as in sets drawn at random
    if spread == "min":
        assert least >= 6 > max(d for d, _ in chance)


def test_the_first_nine_share_no_place():
    assert hamming_distances(permutation_set(9, 9)) == (9, 9.0)


def test_seed_decides_and_nothing_else():
    first = permutation_set(6, 30, seed=1)
    assert torch.equal(first, permutation_set(6, 30, seed=1))
    assert not torch.equal(first, permutation_set(6, 30, seed=2))
    first[0] = 0  # what is handed out is the caller's own
    assert permutation_set(6, 30, seed=1)[0].unique().numel() == 6


def test_a_whole_set_has_every_permutation():
    assert len(permutation_set(4, 24).unique(dim=0)) == math.factorial(4)


@pytest.mark.parametrize(("places", "count", "match"), [(16, 10, "3 x 3"), (4, 25, "2 to 24"), (4, 1, "2 to 24")])
def test_what_cannot_be_chosen_is_refused(places, count, match):
    with pytest.raises(ConfigError, match=match):
        permutation_set(places, count)
