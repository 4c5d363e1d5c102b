"""KoLeo against its equation, and itself in shards."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.koleo import koleo


def naive(x: Tensor, top_k: int = 1) -> Tensor:
    """The equation with two loops."""
    u = F.normalize(x, dim=-1, eps=1e-8)
    terms = []
    for i in range(len(u)):
        others = sorted((j for j in range(len(u)) if j != i), key=lambda j, i=i: -float(u[i].detach() @ u[j].detach()))
        terms += [-torch.log((u[i] - u[j] + 1e-8).norm() + 1e-8) for j in others[:top_k]]
    return torch.stack(terms).mean()


def rows(count: int = 9, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return (3 * torch.randn(count, width, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("top_k", [1, 2, 5, 8])
def test_equals_the_double_loop(top_k: int) -> None:
    x = rows()
    expected, loss = naive(x, top_k), koleo(x, top_k=top_k)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    (wanted,), (got,) = torch.autograd.grad(expected, x), torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_closed_form() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    assert koleo(5 * eye).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-7)


def test_descending_it_spreads_the_rows() -> None:
    x = rows(16).detach().requires_grad_()
    x.data += 5  # crowded
    before = koleo(x).item()
    optimizer = torch.optim.SGD([x], lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss = koleo(x)
        loss.backward()
        optimizer.step()
    assert koleo(x).item() < before - 0.5


def test_shards_with_gathered_rows_equal_the_full_batch() -> None:
    x = rows(8)
    full = koleo(x, top_k=2)
    parts = [koleo(x[part], top_k=2, x_all=x * 1, offset=part.start) for part in (slice(0, 4), slice(4, 8))]
    total = (parts[0] + parts[1]) / 2
    torch.testing.assert_close(total, full)
    torch.testing.assert_close(torch.autograd.grad(total, x)[0], torch.autograd.grad(full, x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_twins_and_large_rows_stay_finite(dtype: torch.dtype) -> None:
    x = (rows(12).detach() * 1e3).to(dtype)
    x[1], x[2] = x[0], 0.0
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo(x)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert x.grad is not None and x.grad.dtype == dtype
    assert torch.isfinite(x.grad[3:]).all()


def test_bad_input_is_refused() -> None:
    x = rows(4)
    with pytest.raises(ConfigError, match="larger batch"):
        koleo(x[:1])
    with pytest.raises(ConfigError, match="larger batch"):
        koleo(x, top_k=4)
    with pytest.raises(ConfigError, match="offset 2"):
        koleo(x[:3], x_all=x, offset=2)
    with pytest.raises(ConfigError, match="rows must be"):
        koleo(x, x_all=x[:, :2])
