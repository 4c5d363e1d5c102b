import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.diffusion import discretised_log_likelihood, gaussian_kl, noise_mse, variational_term


def test_noise_mse_is_the_mean_square_in_float32():
    a, b = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 3, 4, 4)
    loss = noise_mse(a, b)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ((a.float() - b) ** 2).mean())
    assert noise_mse(b.double(), b.double()).dtype == torch.float64
    with pytest.raises(ConfigError, match="not of"):
        noise_mse(a, b[:1])


def test_kl_is_torchs():
    m1, v1, m2, v2 = torch.randn(4, 10).double().unbind(0)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(m1, (0.5 * v1).exp()), torch.distributions.Normal(m2, (0.5 * v2).exp())
    )
    torch.testing.assert_close(gaussian_kl(m1, v1, m2, v2), theirs)


def test_probabilities_of_all_pixel_values_add_to_one():
    values = torch.arange(256).double() / 127.5 - 1
    for mean, deviation in ((0.0, 0.1), (-0.5, 0.1), (0.4, 0.01)):
        log = discretised_log_likelihood(values, torch.tensor(mean), torch.tensor(2 * math.log(deviation)).double())
        assert float(log.exp().sum()) == pytest.approx(1.0, abs=1e-6)
        assert int(log.argmax()) == pytest.approx((mean + 1) * 127.5, abs=0.51)


def test_the_first_level_is_a_likelihood_and_the_others_divergences_in_bits():
    x = torch.rand(2, 1, 3, 3).double() * 2 - 1
    mean, low = x + 0.01, torch.full_like(x, -6.0)
    terms = [
        float(variational_term(x, torch.tensor([level, level]), x, torch.full_like(x, -5.0), mean, low))
        for level in (0, 7)
    ]
    likelihood = -discretised_log_likelihood(x, mean, low).mean() / math.log(2)
    divergence = gaussian_kl(x, torch.tensor(-5.0).double(), mean, low).mean() / math.log(2)
    assert terms == [pytest.approx(float(likelihood)), pytest.approx(float(divergence))]
