import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.mmd import mmd_squared, nearer_test, same_distribution_test


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_against_the_naive_loop():
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)

    def k(a, b):
        return math.exp(-float((a - b).square().sum()) / (2 * 1.5**2))

    told = sum(k(a, b) for a in x for b in x) / 25 + sum(k(a, b) for a in y for b in y) / 49
    told -= 2 * sum(k(a, b) for a in x for b in y) / 35
    assert float(mmd_squared(x, y, 1.5)) == pytest.approx(told, rel=1e-9)


def test_zero_for_the_same_sample_and_growing_with_distance():
    x = torch.randn(50, 2, generator=gen())
    assert abs(float(mmd_squared(x, x))) < 1e-6
    near, far = (float(mmd_squared(x, x + shift, 1.0)) for shift in (0.5, 2.0))
    assert 0 < near < far < 2


def test_permutations_of_equal_distributions_give_uniform_p_values():
    p_values = []
    for seed in range(60):
        z = torch.randn(40, 2, generator=gen(seed))
        p_values.append(same_distribution_test(z[:20], z[20:], 99, gen(seed + 1000))[1])
    p = torch.tensor(p_values)
    assert 0.3 < float(p.mean()) < 0.7 and 0 < float((p <= 0.25).float().mean()) < 0.5
    assert float(p.min()) >= 0.01


def test_different_distributions_are_told_apart_and_the_statistic_is_the_mmd():
    x, y = torch.randn(80, 2, generator=gen()), torch.randn(60, 2, generator=gen(1)) + 1
    value, p = same_distribution_test(x, y, 199, gen(2))
    assert p == 1 / 200
    assert value == pytest.approx(float(mmd_squared(x, y)), rel=1e-4)


def test_the_nearer_sample_is_found():
    target = torch.randn(200, 2, generator=gen())
    near, far = torch.randn(100, 2, generator=gen(1)), 3 * torch.randn(100, 2, generator=gen(2))
    value, p = nearer_test(near, far, target, 199, gen(3))
    bandwidth = torch.cdist(*[torch.cat([near, far, target])] * 2).square().flatten().median().sqrt()
    told = mmd_squared(far, target, bandwidth) - mmd_squared(near, target, bandwidth)
    assert value == pytest.approx(float(told), rel=1e-3) and value > 0 and p == 1 / 200
    swapped, p_swapped = nearer_test(far, near, target, 199, gen(3))
    assert swapped == pytest.approx(-value, rel=1e-4) and p_swapped > 0.95
    assert nearer_test(near[:50], near[50:], target, 199, gen(3))[1] > 0.02


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="do not fit"):
        mmd_squared(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ConfigError, match="one size"):
        nearer_test(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(5, 2))
