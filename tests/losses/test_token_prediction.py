import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses import token_prediction
from imprint.losses.token_prediction import token_cross_entropy, token_nats


def inputs(dtype=torch.float64, tokens=23, width=6, classes=11):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(classes, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, classes, (tokens,))


@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_equal_the_plain_ones_in_any_chunks(monkeypatch, with_bias):
    hidden, weight, bias, target = inputs()
    bias = bias if with_bias else None
    learned = [x for x in (hidden, weight, bias) if x is not None]
    logits = hidden @ weight.T + (0 if bias is None else bias)
    naive = -sum(logits[t].log_softmax(0)[target[t]] for t in range(23)) / 23
    expected = torch.autograd.grad(3 * naive, learned)
    for size in (1, 55, 10_000):
        monkeypatch.setattr(token_prediction, "LOGITS", size)
        loss, right = token_cross_entropy(hidden, weight, target, bias)
        torch.testing.assert_close(loss, naive)
        assert right.item() == pytest.approx((logits.argmax(1) == target).double().mean().item())
        for found, wanted in zip(torch.autograd.grad(3 * loss, learned), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_zero_classifier_costs_log_k():
    hidden, _, _, target = inputs()
    loss, _ = token_cross_entropy(hidden, torch.zeros(11, 6, dtype=torch.float64), target)
    assert loss.item() == pytest.approx(math.log(11))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype):
    hidden, weight, _, target = inputs(dtype)
    loss, _ = token_cross_entropy(hidden * 100, weight * 100, target)
    loss.backward()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    assert torch.isfinite(hidden.grad).all() and hidden.grad.dtype == dtype


def test_frozen_classifier_takes_no_gradient_and_no_tokens_cost_nothing():
    hidden, weight, _, target = inputs()
    loss, right = token_cross_entropy(hidden, weight.detach(), target)
    loss.backward()
    assert hidden.grad is not None and weight.grad is None and not right.requires_grad
    empty, _ = token_cross_entropy(hidden[:0], weight, target[:0])
    assert empty.item() == 0.0
    with pytest.raises(ConfigError, match="do not fit"):
        token_cross_entropy(hidden, weight[:, :3], target)


def test_autocast_multiplies_in_its_precision_and_sums_in_float32():
    hidden, weight, _, target = inputs(torch.float32)
    plain, _ = token_cross_entropy(hidden, weight, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = token_cross_entropy(hidden, weight, target)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(plain.item(), rel=2e-2)
    loss.backward()
    assert hidden.grad.dtype == torch.float32 and weight.grad.dtype == torch.float32


def test_weights_make_a_mean_over_some_tokens(monkeypatch):
    hidden, weight, bias, target = inputs()
    chosen = torch.tensor([2, 3, 11, 22])
    learned = (hidden, weight, bias)
    naive, naive_right = token_cross_entropy(hidden[chosen], weight, target[chosen], bias)
    expected = torch.autograd.grad(2 * naive, learned)
    share = torch.zeros(23, dtype=torch.float64).index_fill(0, chosen, 0.25)
    for size in (1, 55, 10_000):
        monkeypatch.setattr(token_prediction, "LOGITS", size)
        loss, right = token_cross_entropy(hidden, weight, target, bias, share)
        torch.testing.assert_close((loss, right), (naive, naive_right))
        for found, wanted in zip(torch.autograd.grad(2 * loss, learned), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        assert (
            torch.autograd.grad(token_cross_entropy(hidden, weight, target, bias, share)[0], hidden)[0][0].eq(0).all()
        )
    with pytest.raises(ConfigError, match="weights"):
        token_cross_entropy(hidden, weight, target, bias, share[:5])


def test_nats_of_every_token_are_those_whose_mean_is_the_loss(monkeypatch):
    hidden, weight, bias, target = inputs()
    loss, _ = token_cross_entropy(hidden, weight, target, bias)
    for size in (1, 55, 10_000):
        monkeypatch.setattr(token_prediction, "LOGITS", size)
        nats = token_nats(hidden, weight, target, bias)
        torch.testing.assert_close(nats, F.cross_entropy(hidden @ weight.T + bias, target, reduction="none").detach())
        torch.testing.assert_close(nats.mean(), loss.detach())
    assert not nats.requires_grad and token_nats(hidden[:0], weight, target[:0]).shape == (0,)
    with pytest.raises(ConfigError, match="token_nats"):
        token_nats(hidden, weight[:, :3], target)
