"""Barlow Twins against its equation in autograd, closed forms, and both ways of computing it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.barlow_twins import barlow_twins, cross_correlation

SHAPES = [(2, 3), (8, 12), (12, 8), (9, 9), (9, 10), (33, 70), (70, 5), (5, 1)]


def naive(z1: Tensor, z2: Tensor, lambd: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 1 with the whole matrix, by autograd."""
    u, v = (F.batch_norm(z, None, None, training=True, eps=eps) for z in (z1, z2))
    c = u.T @ v / len(z1)
    on = (c.diagonal() - 1).square().sum()
    off = c.square().sum() - c.diagonal().square().sum()
    return on + lambd * off, on, off


def pair(rows: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + width)
    z1 = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 2 + 5
    z2 = z1 + torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return z1.to(dtype).requires_grad_(), z2.to(dtype).requires_grad_()


@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize(("lambd", "eps"), [(0.0051, 1e-5), (1.0, 1e-3), (0.0, 1e-12)])
def test_equals_the_equation_and_its_gradient(rows: int, width: int, lambd: float, eps: float) -> None:
    z1, z2 = pair(rows, width)
    terms = barlow_twins(z1, z2, lambd, eps=eps)
    expected = naive(z1, z2, lambd, eps)
    got = torch.autograd.grad(terms.loss * 3, (z1, z2))
    wanted = torch.autograd.grad(expected[0] * 3, (z1, z2))
    for a, b in zip((*terms, *got), (*expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_no_matrix_of_width_squared_is_made_where_the_batch_is_smaller() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    z1, z2 = pair(8, 300, torch.float32)
    with Watch():
        barlow_twins(z1, z2).loss.backward()
    assert 0 < largest <= 8 * 300


def test_equal_views_of_independent_dimensions_cost_nothing() -> None:
    z = torch.linalg.qr(torch.randn(64, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    z = torch.linalg.qr(torch.cat([torch.ones(64, 1, dtype=torch.float64), z], 1))[0][:, 1:]  # centred, orthogonal
    terms = barlow_twins(z, z, eps=0.0)
    assert float(terms.loss) < 1e-20
    torch.testing.assert_close(cross_correlation(z, z, 0.0), torch.eye(9, dtype=torch.float64))


def test_copies_of_one_dimension_cost_all_off_diagonals() -> None:
    z = torch.randn(32, 1, dtype=torch.float64).expand(32, 50)
    terms = barlow_twins(z, z, 0.5, eps=0.0)
    torch.testing.assert_close(terms.off_diagonal, torch.tensor(50.0 * 49, dtype=torch.float64))
    torch.testing.assert_close(terms.loss, 0.5 * terms.off_diagonal)


@pytest.mark.parametrize(("rows", "width"), [(16, 40), (40, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_float32_also_under_autocast(rows: int, width: int, dtype: torch.dtype) -> None:
    z1, z2 = pair(rows, width, dtype)
    exact = barlow_twins(z1.detach().double(), z2.detach().double()).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_twins(z1, z2).loss
    loss.backward()
    assert loss.dtype == torch.float32 and z1.grad is not None and z1.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [8, 64])
def test_large_values_stay_finite_and_constant_ones_too(rows: int) -> None:
    z1, z2 = (torch.randn(rows, 16) * 1e4 for _ in range(2))
    z1.requires_grad_()
    barlow_twins(z1, z2).loss.backward()
    assert torch.isfinite(z1.grad).all()
    flat = torch.ones(rows, 16, requires_grad=True)
    terms = barlow_twins(flat, flat)
    terms.loss.backward()
    assert torch.isfinite(flat.grad).all() and float(terms.on_diagonal.detach()) == 16.0


def test_only_the_loss_carries_gradient_and_one_branch_may_need_none() -> None:
    z1, z2 = pair(8, 12)
    terms = barlow_twins(z1, z2.detach())
    assert terms.loss.requires_grad and not terms.on_diagonal.requires_grad and not terms.off_diagonal.requires_grad
    terms.loss.backward()
    wanted = torch.autograd.grad(naive(z1, z2, 0.0051, 1e-5)[0], z1)[0]
    torch.testing.assert_close(z1.grad, wanted)


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="equal"):
        barlow_twins(torch.randn(4, 3), torch.randn(4, 5))
    with pytest.raises(ConfigError, match="at least 2 rows"):
        barlow_twins(torch.randn(1, 3), torch.randn(1, 3))
    with pytest.raises(ConfigError, match="lambd"):
        barlow_twins(torch.randn(4, 3), torch.randn(4, 3), -1.0)
