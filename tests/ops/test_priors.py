import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.priors import sample_prior

INDEX = torch.arange(100_000)


def test_gaussian_has_its_moments():
    z = sample_prior("gaussian", 5, INDEX, 3, scale=5.0).double()
    assert z.mean(0).abs().max() < 0.08
    torch.testing.assert_close(torch.cov(z.T), 25 * torch.eye(3, dtype=torch.float64), atol=0.5, rtol=0)
    assert float(((z / 5) ** 4).mean()) == pytest.approx(3, abs=0.1)


def test_mixture_has_ten_petals_of_the_stated_moments():
    z = sample_prior("mixture", 5, INDEX, 2, scale=2.0).double() / 2
    assert z.mean(0).abs().max() < 0.02
    # E|z|^2 = 1.4^2 + .5^2 + .1^2, half of it along each axis by symmetry.
    expected = (1.4**2 + 0.5**2 + 0.1**2) / 2
    torch.testing.assert_close(torch.cov(z.T), expected * torch.eye(2, dtype=torch.float64), atol=0.02, rtol=0)
    outer = z[z.norm(dim=1) > 1.0]
    angle = torch.atan2(outer[:, 1], outer[:, 0]) / (2 * math.pi / 10)
    petal = angle.round().long() % 10
    share = torch.bincount(petal, minlength=10) / len(petal)
    assert (share - 0.1).abs().max() < 0.006
    first = outer[petal == 0]
    assert float(first[:, 1].std()) == pytest.approx(0.1, abs=0.01) and float(first[:, 1].mean().abs()) < 0.01


def test_swiss_roll_lies_on_its_curve_with_its_mean():
    z = sample_prior("swiss_roll", 5, INDEX, 2).double()
    s = z.norm(dim=1) / 3
    on_curve = 3 * s[:, None] * torch.stack([(4 * math.pi * s).cos(), (4 * math.pi * s).sin()], 1)
    torch.testing.assert_close(z, on_curve, atol=1e-4, rtol=0)
    assert float(z.square().sum(1).mean()) == pytest.approx(4.5, abs=0.05)  # 9 E[u]
    # E z = 6 int_0^1 s^2 exp(4 pi i s) ds = 6 (1/a - 2/a^2), a = 4 pi i
    assert float(z[:, 0].mean()) == pytest.approx(6 / (8 * math.pi**2), abs=0.02)
    assert float(z[:, 1].mean()) == pytest.approx(-6 / (4 * math.pi), abs=0.02)


def test_uniform_fills_its_box():
    z = sample_prior("uniform", 5, INDEX, 4, scale=3.0)
    assert z.abs().max() <= 3 and z.mean(0).abs().max() < 0.03
    assert (z.var(0) - 3).abs().max() < 0.05  # 3^2 / 3


@pytest.mark.parametrize("prior", ["gaussian", "mixture", "swiss_roll", "uniform"])
def test_samples_belong_to_index_and_key(prior):
    whole = sample_prior(prior, 1, INDEX[:50], 2)
    assert torch.equal(sample_prior(prior, 1, INDEX[20:30], 2), whole[20:30])
    assert not torch.equal(sample_prior(prior, 2, INDEX[:50], 2), whole)
    assert whole.unique(dim=0).shape[0] == 50 and whole.isfinite().all()


@pytest.mark.parametrize("prior", ["mixture", "swiss_roll"])
def test_priors_of_the_plane_refuse_other_dimensions(prior):
    with pytest.raises(ConfigError, match="latent 2"):
        sample_prior(prior, 1, INDEX[:5], 3)
