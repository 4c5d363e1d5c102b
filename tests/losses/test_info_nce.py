"""InfoNCE, with a queue and in the batch, against its equation, closed forms, and itself in shards."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses import info_nce as module
from imprint.losses.info_nce import contrast_accuracy, info_nce, info_nce_queue, mocov3_loss, queue_logits


def naive_queue(q: Tensor, k: Tensor, queue: Tensor, temperature: float, filled: int) -> Tensor:
    """Equation 1 of MoCo with two loops."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a.norm() * b.norm()) / temperature

    terms = []
    for i in range(len(q)):
        positive = cosine(q[i], k[i].detach())
        others = [cosine(q[i], queue[j].detach()) for j in range(filled)]
        terms.append(torch.logsumexp(torch.stack([positive, *others]), 0) - positive)
    return torch.stack(terms).mean()


def naive_batch(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Equation 1 of MoCo v3 with the whole matrix."""
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(q)))


def rows(count: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, width, generator=generator, dtype=torch.float64) * (1 + seed)).to(dtype).requires_grad_()


@pytest.fixture(params=[(2, 3), (4, 5), (4096, 4096)], ids=lambda sides: f"tile{sides[0]}x{sides[1]}")
def sides(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    value: tuple[int, int] = request.param
    monkeypatch.setattr(module, "_sides", lambda device: value)
    return value


@pytest.mark.parametrize("temperature", [0.07, 1.0, 1e-4])
@pytest.mark.parametrize("filled", [0, 1, 4, 13])
def test_queue_loss_equals_the_double_loop(sides: tuple[int, int], temperature: float, filled: int) -> None:
    q, k, queue = rows(5, 4, 0), rows(5, 4, 1), rows(13, 4, 2)
    expected = naive_queue(q, k, queue, temperature, filled)
    grad = torch.autograd.grad(expected, q)[0]
    for count in (filled, torch.tensor(filled)):
        loss = info_nce_queue(q, k, queue, temperature, filled=count)
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(loss, q)[0], grad, rtol=1e-9, atol=1e-12 / temperature)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1e-4])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_batch_loss_equals_the_matrix(sides: tuple[int, int], temperature: float, count: int) -> None:
    q, k = rows(count, 4, 0), rows(count, 4, 1)
    expected = naive_batch(q, k, temperature)
    grads = torch.autograd.grad(expected, (q, k))
    loss = info_nce(q, k, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    for got, want in zip(torch.autograd.grad(loss, (q, k)), grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12 / temperature)


def test_gradcheck() -> None:
    q, k, queue = rows(3, 4, 0), rows(3, 4, 1), rows(5, 4, 2).detach()
    assert torch.autograd.gradcheck(lambda a: info_nce_queue(a, k, queue, 0.3), (q,))
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.3), (q, k))
    everyone = rows(8, 4, 3)
    own = everyone[2:5]
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, own, 0.3, k_all=b, offset=2), (q, everyone))


def test_closed_forms() -> None:
    same = torch.ones(6, 3)
    assert info_nce(same, same, 0.2).item() == pytest.approx(math.log(6), rel=1e-6)
    assert info_nce_queue(same, same, torch.ones(7, 3), 0.2).item() == pytest.approx(math.log(8), rel=1e-6)
    eye = torch.eye(6, dtype=torch.float64)
    expected = math.log(math.exp(1 / 0.5) + 5) - 1 / 0.5
    assert info_nce(eye, 9 * eye, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_an_empty_queue_gives_no_loss_and_no_gradient() -> None:
    q, k, queue = rows(4, 3, 0), rows(4, 3, 1), torch.randn(8, 3)
    for filled in (0, torch.tensor(0)):
        loss = info_nce_queue(q, k, queue, 0.07, filled=filled)
        assert loss.item() == pytest.approx(0.0, abs=1e-14)
        assert torch.autograd.grad(loss, q)[0].abs().max() < 1e-13


def test_gradient_reaches_queries_only_and_the_queue_may_change_before_backward() -> None:
    q, k, queue = rows(4, 3, 0), rows(4, 3, 1), rows(6, 3, 2)
    expected = torch.autograd.grad(info_nce_queue(q, k, queue, 0.2), q)[0]
    loss = info_nce_queue(q, k, queue, 0.2)
    with torch.no_grad():
        queue.zero_()
    (3.0 * loss).backward()
    torch.testing.assert_close(q.grad, 3.0 * expected)
    assert k.grad is None and queue.grad is None
    assert not info_nce_queue(q.detach(), k, queue, 0.2).requires_grad


@pytest.mark.parametrize("temperature", [0.1, 0.002])
def test_shards_with_gathered_keys_equal_the_full_batch(sides: tuple[int, int], temperature: float) -> None:
    q, k = rows(10, 6, 0), rows(10, 6, 1)
    full = info_nce(q, k, temperature)
    expected = torch.autograd.grad(full, (q, k))
    parts = (slice(0, 4), slice(4, 8), slice(8, 10))
    losses = [info_nce(q[p], k[p], temperature, k_all=k * 1, offset=p.start) for p in parts]
    total = 0.4 * losses[0] + 0.4 * losses[1] + 0.2 * losses[2]
    torch.testing.assert_close(total, full, rtol=1e-11, atol=1e-12)
    for got, want in zip(torch.autograd.grad(total, (q, k)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_mocov3_is_the_scaled_sum_of_both_directions_without_gradient_to_keys() -> None:
    q1, q2, k1, k2 = (rows(6, 4, seed) for seed in range(4))
    loss = mocov3_loss(q1, q2, k1, k2, 0.3)
    torch.testing.assert_close(loss, 0.6 * (naive_batch(q1, k2, 0.3) + naive_batch(q2, k1, 0.3)))
    torch.testing.assert_close(mocov3_loss(q1, q2, k1, k2, 0.3, scale=False), loss / 0.6)
    loss.backward()
    assert q1.grad is not None and q2.grad is not None and k1.grad is None and k2.grad is None


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_low_precision_stays_close(dtype: torch.dtype, bound: float) -> None:
    q, k, queue = rows(20, 16, 0), rows(20, 16, 1), rows(70, 16, 2).detach()
    for loss_of in (
        lambda a: info_nce_queue(a, k.to(a.dtype), queue.float(), 0.2),
        lambda a: info_nce(a, k.to(a.dtype), 0.2),
    ):
        exact = torch.autograd.grad(loss_of(q), q)[0]
        low = q.detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(low)
        loss.backward()
        assert loss.dtype == torch.float32 and low.grad is not None and low.grad.dtype == dtype
        torch.testing.assert_close(loss.double(), loss_of(q), rtol=bound, atol=0)
        assert (low.grad.double() - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 1e-4])
def test_extreme_inputs_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    torch.manual_seed(0)
    q, k, queue = torch.randn(9, 8) * 1e4, torch.randn(9, 8) * 1e-4, torch.randn(33, 8) * 1e4
    q[3] = 0.0  # a dead row has no direction
    queue[4], queue[5], queue[6] = 0.0, q[1], -q[1]
    leaf, keys = q.to(dtype).requires_grad_(), k.to(dtype)
    for loss in (
        info_nce_queue(leaf, keys, queue, temperature),
        info_nce_queue(leaf, keys, queue, temperature, filled=torch.tensor(20)),
        info_nce(leaf, keys, temperature),
    ):
        assert torch.isfinite(loss) and torch.isfinite(torch.autograd.grad(loss, leaf)[0]).all()


def test_logits_and_accuracy() -> None:
    q, k, queue = rows(4, 3, 0).detach(), rows(4, 3, 1).detach(), rows(6, 3, 2).detach()
    logits = queue_logits(q, k, queue, 0.1)
    assert logits.shape == (4, 7)
    torch.testing.assert_close(
        F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)), info_nce_queue(q, k, queue, 0.1)
    )
    assert contrast_accuracy(q, q, queue, 6).item() == 1.0
    assert contrast_accuracy(q, -q, queue, 6).item() == 0.0
    assert contrast_accuracy(q, -q, queue, torch.tensor(0)).item() == 1.0
    expected = (logits.argmax(dim=1) == 0).double().mean()
    assert contrast_accuracy(q, k, queue, torch.tensor(6)) == expected


def test_memory_does_not_grow_with_the_matrix() -> None:
    """The graph keeps vectors of the batch only: no tensor with B x A or B x K elements."""
    q, k, queue = rows(300, 4, 0), rows(300, 4, 1), rows(5000, 4, 2).detach()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        (info_nce_queue(q, k, queue, 0.2) + info_nce(q, k, 0.2)).backward()
    assert kept and max(kept) <= 300 * 4


def test_bad_arguments_are_refused() -> None:
    q, k, queue = torch.randn(4, 3), torch.randn(4, 3), torch.randn(6, 3)
    with pytest.raises(ConfigError, match="equal non-empty"):
        info_nce_queue(q, k[:3], queue, 0.1)
    with pytest.raises(ConfigError, match="the queue must be"):
        info_nce_queue(q, k, queue.T, 0.1)
    with pytest.raises(ConfigError, match="filled=7"):
        info_nce_queue(q, k, queue, 0.1, filled=7)
    with pytest.raises(ConfigError, match="positive number"):
        info_nce(q, k, 0.0)
    with pytest.raises(ConfigError, match="gathered keys"):
        info_nce(q, k, 0.1, k_all=torch.randn(4, 2))
    with pytest.raises(ConfigError, match="at offset 3"):
        info_nce(q, k, 0.1, k_all=torch.randn(6, 3), offset=3)
