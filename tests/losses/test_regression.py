"""BYOL's and SimSiam's losses against their equations, and where gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.regression import byol_loss, cosine, simsiam_loss


def four(rows: int = 6, width: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]


def naive_byol(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Equations 2 and 3 of BYOL, image by image."""
    terms = []
    for i in range(len(p1)):
        terms.append(
            (p1[i] / p1[i].norm() - z2[i] / z2[i].norm()).square().sum()
            + (p2[i] / p2[i].norm() - z1[i] / z1[i].norm()).square().sum()
        )
    return torch.stack(terms)


def test_byol_equals_the_loop() -> None:
    p1, p2, z1, z2 = four()
    leaves = [p1.requires_grad_(), p2.requires_grad_()]
    expected = naive_byol(p1, p2, z1, z2)
    torch.testing.assert_close(byol_loss(p1, p2, z1, z2, reduction="none"), expected, rtol=1e-12, atol=1e-12)
    loss = byol_loss(p1, p2, z1, z2)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.mean(), leaves)
    for got, want in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_closed_forms() -> None:
    x, y = torch.eye(4)[:2], torch.eye(4)[2:]
    assert byol_loss(x, 3 * x, 5 * x, x).item() == pytest.approx(0.0, abs=1e-6)
    assert byol_loss(x, x, -x, -x).item() == pytest.approx(8.0)
    assert byol_loss(x, x, y, y).item() == pytest.approx(4.0)
    assert simsiam_loss(x, 2 * x, x, x).item() == pytest.approx(-1.0)
    assert simsiam_loss(x, x, -x, -x).item() == pytest.approx(1.0)
    assert simsiam_loss(x, x, y, y).item() == pytest.approx(0.0)


def test_targets_take_no_gradient() -> None:
    for function in (byol_loss, simsiam_loss):
        leaves = [x.requires_grad_() for x in four()]
        function(*leaves).backward()
        assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in leaves[:2])
        assert all(x.grad is None for x in leaves[2:])


def test_without_stop_gradient_both_sides_move() -> None:
    leaves = [x.requires_grad_() for x in four()]
    assert torch.autograd.gradcheck(lambda *x: simsiam_loss(*x, stop_gradient=False), leaves)
    simsiam_loss(*leaves, stop_gradient=False).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in leaves)


def test_gradient_is_at_right_angles_to_the_prediction() -> None:
    p1, p2, z1, z2 = four()
    p1.requires_grad_()
    byol_loss(p1, p2, z1, z2).backward()
    assert p1.grad is not None
    torch.testing.assert_close((p1.grad * p1).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)


def test_a_dead_row_is_scaled_as_the_public_code_does() -> None:
    x = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
    value = cosine(x, y, floor=1e-12)
    value.sum().backward()
    assert value.item() == 0 and x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 1e6, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_rows_stay_finite(dtype: torch.dtype) -> None:
    for scale in (6e4, 1e-6, 0.0):
        leaves = [(x.clamp(-1, 1) * scale).to(dtype).requires_grad_() for x in four()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = byol_loss(*leaves), simsiam_loss(*leaves, stop_gradient=False)
        for loss in losses:
            assert loss.dtype == torch.float32 and torch.isfinite(loss)
        losses[0].backward()
        assert leaves[0].grad is not None and leaves[0].grad.dtype == dtype
        assert torch.isfinite(leaves[0].grad).all() or scale < 1e-3  # 1 / length overflows float16


def test_halves_average_to_the_whole() -> None:
    parts = four(8)
    for function in (byol_loss, simsiam_loss):
        halves = [function(*(x[rows] for x in parts)) for rows in (slice(0, 4), slice(4, 8))]
        torch.testing.assert_close(sum(halves) / 2, function(*parts))


def test_bad_input_is_refused() -> None:
    p1, p2, z1, z2 = four()
    with pytest.raises(ConfigError, match="equal non-empty"):
        byol_loss(p1, p2[:3], z1, z2)
    with pytest.raises(ConfigError, match="equal non-empty"):
        simsiam_loss(*(x[:0] for x in (p1, p2, z1, z2)))
    with pytest.raises(ConfigError, match="reduction"):
        byol_loss(p1, p2, z1, z2, reduction="sum")  # type: ignore[arg-type]
    assert math.isfinite(byol_loss(p1, p2, z1, z2).item())
