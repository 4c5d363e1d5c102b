import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.adversarial import discriminator_loss, fooling_loss, weighted_l2


def test_losses_of_the_game_against_the_naive_loop():
    real, fake = torch.randn(7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    told = sum(-math.log(1 / (1 + math.exp(-float(r)))) for r in real) / 7
    told += sum(-math.log(1 - 1 / (1 + math.exp(-float(f)))) for f in fake) / 5
    assert float(discriminator_loss(real, fake)) == pytest.approx(told, rel=1e-12)
    fooled = sum(-math.log(1 / (1 + math.exp(-float(f)))) for f in fake) / 5
    assert float(fooling_loss(fake)) == pytest.approx(fooled, rel=1e-12)


def test_a_discriminator_that_does_not_know():
    zero = torch.zeros(4)
    torch.testing.assert_close(discriminator_loss(zero, zero), torch.tensor(2 * math.log(2)))
    torch.testing.assert_close(fooling_loss(zero), torch.tensor(math.log(2)))


def test_fooling_keeps_its_gradient_while_the_discriminator_wins():
    fake = torch.tensor([-30.0], requires_grad=True)
    fooling_loss(fake).backward()
    torch.testing.assert_close(fake.grad, torch.tensor([-1.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_logits_of_low_precision_stay_finite(dtype):
    big = torch.tensor([-6e4, 6e4], dtype=dtype, requires_grad=True)
    loss = discriminator_loss(big, big) + fooling_loss(big)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and big.grad.isfinite().all()


def test_weighted_l2_against_the_naive_loop_and_its_gradient():
    torch.manual_seed(0)
    pred = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randn_like(pred).requires_grad_(), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    loss = weighted_l2(pred, target, weight)
    total = 0.0
    for b in range(2):
        for c in range(3):
            for h in range(4):
                for w in range(5):
                    total += float(weight[b, 0, h, w] * (pred[b, c, h, w] - target[b, c, h, w]).detach() ** 2)
    assert float(loss.detach()) == pytest.approx(total / pred.numel(), rel=1e-12)
    loss.backward()
    torch.testing.assert_close(pred.grad, 2 * weight * (pred - target).detach() / pred.numel())
    assert target.grad is None


def test_weights_of_one_are_the_mean_squared_error_and_serve_all_images():
    pred, target = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(weighted_l2(pred, target, torch.ones(1, 1, 4, 4)), F.mse_loss(pred, target))


@pytest.mark.parametrize("shape", [(4, 4), (2, 1, 4, 4), (3, 1, 4, 5), (3, 2, 4, 4)])
def test_weights_that_do_not_fit_are_refused(shape):
    with pytest.raises(ConfigError, match="do not fit"):
        weighted_l2(torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4), torch.ones(shape))
