import numpy as np
import pytest

from imprint.core.rng import key, permuted, seed_of, uniforms


def test_keys_depend_on_every_part_and_their_order():
    parts = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 2, "a"), (0, 1, 2, "b"), (0, 1, 2, 0)]
    assert len({int(key(*p)) for p in parts}) == len(parts)


def test_keys_are_the_same_alone_and_in_a_batch():
    batch = key(7, 3, np.arange(100), "global", 1)
    assert all(int(key(7, 3, i, "global", 1)) == int(batch[i]) for i in (0, 17, 99))


def test_keys_are_pinned():
    # Any change here changes what every existing run sees when it is resumed.
    assert int(key(0, 0, 0)) == 14099074884255299973
    assert int(key(42, "view", 3)) == 1793772450503614264
    assert uniforms(key(0), 2).tolist() == pytest.approx([0.7709670714226634, 0.08811942465229927], abs=1e-15)


def test_uniforms_are_uniform_and_uncorrelated():
    u = uniforms(key(1, np.arange(20_000)), 8)
    assert u.shape == (20_000, 8) and u.min() >= 0 and u.max() < 1
    assert np.abs(u.mean(0) - 0.5).max() < 4 * (1 / 12 / 20_000) ** 0.5
    correlation = np.corrcoef(u.T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / 20_000**0.5
    histogram = np.histogram(u, bins=64, range=(0, 1))[0]
    expected = u.size / 64
    assert ((histogram - expected) ** 2 / expected).sum() < 64 + 6 * (2 * 64) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 3, 10, 255, 256, 257, 10_007])
def test_permutation_hits_everything_once(size):
    assert sorted(permuted(np.arange(size), size, key(3))) == list(range(size))


def test_permutation_mixes_and_differs_between_keys():
    a, b = permuted(np.arange(5000), 5000, key(0)), permuted(np.arange(5000), 5000, key(1))
    assert np.mean(a == b) < 0.01
    assert abs(np.corrcoef(np.arange(5000), a)[0, 1]) < 0.06


def test_permutation_needs_no_array_of_the_whole():
    out = permuted(np.array([0, 10**12 - 1]), 10**12, key(5))
    assert ((0 <= out) & (out < 10**12)).all() and out[0] != out[1]
    with pytest.raises(ValueError, match="outside"):
        permuted([10], 10, key(0))


def test_seeds_fit_other_libraries():
    assert 0 <= seed_of(1, "x", 2) < 2**63
