"""Which samples form which step."""

from __future__ import annotations

import numpy as np
import pytest

from imprint.core.errors import ConfigError
from imprint.data.sampler import Sampler


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    sampler = Sampler(size=103, batch_size=10, seed=4, drop_last=False)
    assert sampler.steps_per_epoch == 11
    epochs = [np.concatenate([sampler.indices(e * 11 + s) for s in range(11)]) for e in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(103))
    assert not np.array_equal(epochs[0], epochs[1])
    assert sampler.indices(10).size == 3
    assert sampler.epoch(10) == 0 and sampler.epoch(11) == 1


def test_the_order_looks_random() -> None:
    sampler = Sampler(size=10_000, batch_size=10_000, seed=0)
    order = sampler.indices(0)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


def test_dropping_the_last_keeps_batches_full() -> None:
    sampler = Sampler(size=103, batch_size=10, seed=4)
    assert sampler.steps_per_epoch == 10
    assert {sampler.indices(s).size for s in range(25)} == {10}
    left_out = [set(range(103)) - {int(i) for s in range(10) for i in sampler.indices(e * 10 + s)} for e in range(2)]
    assert len(left_out[0]) == 3 and left_out[0] != left_out[1]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_get_contiguous_parts_of_the_same_batch(world: int, drop_last: bool) -> None:
    whole = Sampler(size=50, batch_size=8, seed=1, drop_last=drop_last)
    parts = [Sampler(size=50, batch_size=8, seed=1, drop_last=drop_last, rank=r, world=world) for r in range(world)]
    for step in range(whole.steps_per_epoch + 2):
        joined = np.concatenate([p.indices(step) for p in parts])
        np.testing.assert_array_equal(joined, whole.indices(step))
    assert {p.indices(0).size for p in parts} == {8 // world}


def test_without_shuffling_it_counts() -> None:
    sampler = Sampler(size=5, batch_size=2, seed=9, shuffle=False, drop_last=False)
    assert [sampler.indices(s).tolist() for s in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_a_billion_samples_need_no_array() -> None:
    sampler = Sampler(size=10**9, batch_size=1024, seed=3)
    far = sampler.indices(5 * sampler.steps_per_epoch - 1)
    assert far.size == 1024 and len(set(far.tolist())) == 1024 and 0 <= far.min() and far.max() < 10**9


def test_a_source_smaller_than_the_batch_names_one_that_fits() -> None:
    with pytest.raises(ConfigError, match="--batch-size 96 or less"):
        Sampler(size=99, batch_size=128, seed=0, world=4)
    with pytest.raises(ConfigError, match="at most 3 processes"):
        Sampler(size=3, batch_size=8, seed=0, world=4)
    with pytest.raises(ConfigError, match="multiple of 3"):
        Sampler(size=99, batch_size=8, seed=0, world=3)
    with pytest.raises(ConfigError, match="rank 2"):
        Sampler(size=99, batch_size=8, seed=0, rank=2, world=2)
