"""VICReg against its equations in autograd, closed forms, and both ways of computing it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.vicreg import covariance, vicreg

SHAPES = [(2, 3), (8, 12), (12, 8), (9, 9), (9, 10), (33, 70), (70, 5), (5, 1)]


def naive(x: Tensor, y: Tensor, sim=25.0, std=25.0, cov=1.0, gamma=1.0, eps=1e-4) -> tuple[Tensor, ...]:
    """Eq. 1 to 6 with the whole matrices, by autograd."""
    width = x.shape[1]
    invariance = F.mse_loss(x, y)
    variance = sum(F.relu(gamma - (z.var(0) + eps).sqrt()).mean() / 2 for z in (x, y))
    matrices = [torch.atleast_2d(torch.cov(z.T)) for z in (x, y)]
    redundancy = sum((c.square().sum() - c.diagonal().square().sum()) / width for c in matrices)
    return sim * invariance + std * variance + cov * redundancy, invariance, variance, redundancy


def pair(rows: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + width)
    spread = torch.linspace(0.2, 2.0, width, dtype=torch.float64)  # on both sides of the hinge
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * spread + 3
    y = x + 0.3 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize(
    "weights", [(25.0, 25.0, 1.0, 1.0, 1e-4), (1.0, 0.0, 0.0, 1.0, 1e-4), (0.0, 3.0, 7.0, 0.5, 1e-2)]
)
def test_equals_the_equations_and_their_gradient(rows: int, width: int, weights: tuple[float, ...]) -> None:
    x, y = pair(rows, width)
    sim, std, cov, gamma, eps = weights
    terms = vicreg(x, y, sim_coeff=sim, std_coeff=std, cov_coeff=cov, gamma=gamma, eps=eps)
    expected = naive(x, y, *weights)
    got = torch.autograd.grad(terms.loss * 3, (x, y))
    wanted = torch.autograd.grad(expected[0] * 3, (x, y))
    for a, b in zip((*terms, *got), (*expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


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

    x, y = pair(8, 300, torch.float32)
    with Watch():
        vicreg(x, y).loss.backward()
    assert 0 < largest <= 8 * 300


def test_a_constant_embedding_costs_the_variance_term_alone() -> None:
    x = torch.full((16, 5), 2.0, dtype=torch.float64)
    terms = vicreg(x, x)
    torch.testing.assert_close(float(terms.variance), 1 - 0.01)  # sqrt(eps) = .01
    assert float(terms.invariance) == float(terms.covariance) == 0.0


def test_the_root_keeps_pulling_at_collapse() -> None:
    """Sec. 4.1: on the variance itself the gradient dies as the spread goes to zero; on its root it does not."""
    direction = torch.randn(64, 4, dtype=torch.float64)
    slopes = []
    for spread in (0.5, 0.05):
        x = (direction * spread).requires_grad_()
        vicreg(x, x.detach(), sim_coeff=0.0, cov_coeff=0.0).loss.backward()
        slopes.append(float(x.grad.norm()))
    assert slopes[1] > 0.9 * slopes[0]


def test_covariance_is_the_unbiased_matrix() -> None:
    x, _ = pair(9, 4)
    torch.testing.assert_close(covariance(x), torch.cov(x.detach().T))


@pytest.mark.parametrize(("rows", "width"), [(16, 40), (40, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_float32_also_under_autocast(rows: int, width: int, dtype: torch.dtype) -> None:
    x, y = pair(rows, width, dtype)
    exact = vicreg(x.detach().double(), y.detach().double()).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = vicreg(x, y).loss
    loss.backward()
    assert loss.dtype == torch.float32 and x.grad is not None and x.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_values_stay_finite(rows: int, dtype: torch.dtype) -> None:
    x, y = ((torch.randn(rows, 16) * 1e4).to(dtype) for _ in range(2))
    x.requires_grad_()
    loss = vicreg(x, y).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


def test_only_the_loss_carries_gradient_and_one_branch_may_need_none() -> None:
    x, y = pair(8, 12)
    terms = vicreg(x, y.detach())
    assert terms.loss.requires_grad and not any(term.requires_grad for term in terms[1:])
    terms.loss.backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(naive(x, y)[0], x)[0])


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="one output width"):
        vicreg(torch.randn(4, 3), torch.randn(4, 5))
    with pytest.raises(ConfigError, match="larger batch"):
        vicreg(torch.randn(1, 3), torch.randn(1, 3))
    with pytest.raises(ConfigError, match="not negative"):
        vicreg(torch.randn(4, 3), torch.randn(4, 3), cov_coeff=float("nan"))
