import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.dvae import kl_to_uniform, logit_laplace


def test_divergence_is_zero_at_uniform_and_log_k_at_one_code():
    assert kl_to_uniform(torch.full((2, 5, 64), 3.0)).abs() < 1e-6
    sure = torch.zeros(2, 5, 64)
    sure[..., 7] = 1e4
    torch.testing.assert_close(kl_to_uniform(sure), torch.tensor(math.log(64)))
    torch.testing.assert_close(kl_to_uniform(sure.bfloat16()), torch.tensor(math.log(64)))


def test_divergence_and_its_gradient_equal_the_definition(monkeypatch):
    import imprint.losses.dvae as module

    torch.manual_seed(0)
    logits = torch.randn(3, 7, 11, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    expected = (log_p.exp() * log_p).sum(-1).mean() + math.log(11)
    (wanted,) = torch.autograd.grad(expected * 1.7, logits)
    for rows in (4, 1000):
        monkeypatch.setattr(module, "_rows_at_once", lambda _, rows=rows: rows)
        found = kl_to_uniform(logits)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found * 1.7, logits)[0], wanted)


def test_likelihood_is_that_of_torchs_distributions():
    from torch.distributions import Laplace, SigmoidTransform, TransformedDistribution

    torch.manual_seed(0)
    decoded, unit = torch.randn(2, 6, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    mu, log_b = decoded.chunk(2, 1)
    law = TransformedDistribution(Laplace(mu, log_b.exp()), [SigmoidTransform()])
    torch.testing.assert_close(logit_laplace(decoded, unit, 0.1), -law.log_prob(0.8 * unit + 0.1).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_outputs_stay_finite(dtype):
    decoded = (1e4 * torch.randn(2, 6, 4, 4)).to(dtype).requires_grad_()
    logits = (1e4 * torch.randn(2, 9, 32)).to(dtype).requires_grad_()
    unit = torch.rand(2, 3, 4, 4).round()
    (logit_laplace(decoded, unit) + kl_to_uniform(logits)).backward()
    assert torch.isfinite(decoded.grad).all() and torch.isfinite(logits.grad).all()


def test_shapes_and_margins_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="two channels"):
        logit_laplace(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigError, match="margin"):
        logit_laplace(torch.zeros(2, 6, 4, 4), torch.zeros(2, 3, 4, 4), 0.5)
