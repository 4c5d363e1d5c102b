"""DINO's loss against its equation, closed forms, and itself in parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses import distillation
from imprint.losses.distillation import (
    centred_softmax,
    cross_view_cross_entropy,
    ema_center,
    entropy,
    teacher_entropy,
    teacher_statistics,
)


def naive(student: Tensor, teacher: Tensor, center: Tensor, tau_s: float, tau_t: float) -> Tensor:
    """Equation 3 of DINO with loops over pairs and images."""
    terms = []
    for w in range(teacher.shape[0]):
        for v in range(student.shape[0]):
            if v == w:
                continue
            for b in range(student.shape[1]):
                target = torch.softmax((teacher[w, b] - center) / tau_t, 0)
                terms.append(-(target * torch.log_softmax(student[v, b] / tau_s, 0)).sum())
    return torch.stack(terms).mean()


def logits(views: int, batch: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(views, batch, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[1, 2, 100], ids=lambda rows: f"rows{rows}")
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    rows: int = request.param
    monkeypatch.setattr(distillation, "_rows_per_chunk", lambda width, device: rows)
    return rows


@pytest.mark.parametrize(("views", "targets"), [(2, 1), (2, 2), (5, 2), (4, 3), (1, 0)])
def test_equals_the_loops(chunk_rows: int, views: int, targets: int) -> None:
    if targets == 0:
        with pytest.raises(ConfigError):
            cross_view_cross_entropy(logits(1, 2, 3), logits(1, 2, 3), torch.zeros(3), 0.1, 0.04)
        return
    student, teacher = logits(views, 3, 6).requires_grad_(), logits(targets, 3, 6, seed=1).requires_grad_()
    center = logits(1, 1, 6, seed=2)[0, 0].requires_grad_()
    expected = naive(student, teacher, center, 0.1, 0.05)
    want = torch.autograd.grad(expected, student)[0]
    loss = cross_view_cross_entropy(student, teacher, center, 0.1, 0.05)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    torch.testing.assert_close(student.grad, want, rtol=1e-10, atol=1e-14)
    assert teacher.grad is None and center.grad is None


def test_gradient_by_finite_differences() -> None:
    student, teacher, center = logits(3, 2, 4).requires_grad_(), logits(2, 2, 4, seed=1), logits(1, 1, 4, seed=2)[0]
    (5.0 * cross_view_cross_entropy(student, teacher, center, 0.3, 0.2)).backward()
    assert student.grad is not None
    step = 1e-6
    for place in [(0, 0, 0), (1, 1, 3), (2, 0, 2), (2, 1, 1)]:
        moved = [student.detach().clone(), student.detach().clone()]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = (5.0 * cross_view_cross_entropy(m, teacher, center, 0.3, 0.2) for m in moved)
        assert student.grad[place].item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-5, abs=1e-8)


def test_closed_forms() -> None:
    width = 11
    flat = torch.zeros(4, 3, width)
    assert cross_view_cross_entropy(flat, flat[:2], torch.zeros(width), 0.1, 0.04).item() == pytest.approx(
        math.log(width), rel=1e-6
    )
    # A sharp teacher picks one prototype: the loss is the student's negative log-probability of it.
    teacher = torch.full((2, 3, width), -1e3)
    teacher[..., 4] = 1e3
    student = logits(4, 3, width, dtype=torch.float32)
    picked = -torch.log_softmax(student / 0.5, -1)[..., 4]
    expected = (picked[:2].mean(1).sum() + 2 * picked[2:].mean(1).sum()) / 6
    got = cross_view_cross_entropy(student, teacher, torch.zeros(width), 0.5, 0.04)
    torch.testing.assert_close(got, expected)
    # The centre is subtracted: logits equal to it are a uniform target.
    center = torch.randn(width)
    statistics = teacher_statistics(flat, center.expand(2, 3, width), center, 0.1, 0.04)
    assert statistics["teacher_entropy"].item() == pytest.approx(math.log(width), rel=1e-5)
    assert statistics["kl"].item() == pytest.approx(0.0, abs=1e-5)


def test_several_parts_equal_their_concatenation() -> None:
    student, teacher, center = logits(6, 4, 9), logits(2, 4, 9, seed=1), torch.zeros(1, 9)
    whole = student.clone().requires_grad_()
    cross_view_cross_entropy(whole, teacher, center, 0.1, 0.07).backward()
    pieces = [student[:2].clone().requires_grad_(), student[2:].clone().requires_grad_()]
    cross_view_cross_entropy(pieces, teacher, center, 0.1, 0.07).backward()
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([p.grad for p in pieces if p.grad is not None]), whole.grad)


def test_halves_of_the_batch_average_to_the_whole() -> None:
    student, teacher, center = logits(4, 6, 8).requires_grad_(), logits(2, 6, 8, seed=1), torch.randn(8)
    whole = cross_view_cross_entropy(student, teacher, center, 0.1, 0.07)
    halves = [
        cross_view_cross_entropy(student[:, part], teacher[:, part], center, 0.1, 0.07)
        for part in (slice(0, 3), slice(3, 6))
    ]
    mean = (halves[0] + halves[1]) / 2
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, student), torch.autograd.grad(whole, student))


def test_overwrite_gives_the_same_gradient_in_the_same_memory() -> None:
    leaf, teacher, center = logits(3, 4, 8).requires_grad_(), logits(2, 4, 8, seed=1), torch.zeros(8)
    expected = torch.autograd.grad(cross_view_cross_entropy(leaf, teacher, center, 0.1, 0.07), leaf)[0]
    student = leaf * 1.0
    before = student.detach().clone()
    loss = cross_view_cross_entropy(student, teacher, center, 0.1, 0.07, overwrite=True)
    assert not torch.equal(student.detach(), before)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected)
    with pytest.raises(ConfigError, match="leaf"):
        cross_view_cross_entropy(leaf, teacher, center, 0.1, 0.07, overwrite=True)


def test_overwriting_what_another_step_saved_is_caught() -> None:
    leaf, teacher, center = logits(3, 4, 8).requires_grad_(), logits(2, 4, 8, seed=1), torch.zeros(8)
    student = leaf.exp()  # saves its output for backward
    loss = cross_view_cross_entropy(student, teacher, center, 0.1, 0.07, overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_backward_is_refused_with_a_reason() -> None:
    student = logits(3, 2, 4).requires_grad_()
    loss = cross_view_cross_entropy(student, logits(2, 2, 4), torch.zeros(4), 0.1, 0.07)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        loss.backward()


def test_strided_inputs() -> None:
    student, teacher = logits(4, 3, 8), logits(2, 3, 8, seed=1)
    expected = cross_view_cross_entropy(student, teacher, torch.zeros(8), 0.1, 0.07)
    strided = student.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    loss = cross_view_cross_entropy(
        strided, teacher.transpose(0, 1).contiguous().transpose(0, 1), torch.zeros(8), 0.1, 0.07
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert strided.grad is not None and strided.grad.shape == strided.shape


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_low_precision_stays_close(dtype: torch.dtype, bound: float) -> None:
    exact, teacher, center = logits(5, 6, 300).requires_grad_(), logits(2, 6, 300, seed=1), torch.zeros(300)
    want = cross_view_cross_entropy(exact, teacher, center, 0.1, 0.07)
    want.backward()
    student = exact.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_view_cross_entropy(student, teacher.to(dtype), center, 0.1, 0.07)
    scale = 2.0**16 if dtype == torch.float16 else 1.0  # what a gradient scaler multiplies by
    (loss * scale).backward()
    assert loss.dtype == torch.float32 and student.grad is not None and student.grad.dtype == dtype
    assert exact.grad is not None
    assert abs(loss.item() / want.item() - 1) < bound
    # Inputs rounded to 8 bits move sharp targets themselves; 10 tau-scaled roundings bound the gradient.
    assert (student.grad.double() / scale - exact.grad).norm() / exact.grad.norm() < 10 * bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    student, teacher = logits(4, 5, 40) * 1e4, logits(2, 5, 40, seed=1) * 1e4
    student[0, 0] = 1e4
    student[1, 1, :20], student[1, 1, 20:] = 1e4, -1e4
    leaf = student.clamp(-6e4, 6e4).to(dtype).requires_grad_()
    targets = teacher.clamp(-6e4, 6e4).to(dtype)
    loss = cross_view_cross_entropy(leaf, targets, torch.zeros(40), 0.04, 0.04)
    loss.backward()
    assert torch.isfinite(loss) and leaf.grad is not None and torch.isfinite(leaf.grad).all()
    assert torch.isfinite(teacher_entropy(targets, torch.zeros(40), 0.04))


def test_one_teacher_view_leaves_its_own_student_view_without_gradient() -> None:
    student = logits(3, 2, 5).requires_grad_()
    cross_view_cross_entropy(student, logits(1, 2, 5, seed=1), torch.zeros(5), 0.1, 0.07).backward()
    assert student.grad is not None
    assert (student.grad[0] == 0).all() and (student.grad[1:] != 0).any()


def test_entropy() -> None:
    uniform = torch.full((3, 8), 1 / 8)
    torch.testing.assert_close(entropy(uniform), torch.full((3,), math.log(8)))
    assert entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0.0
    torch.testing.assert_close(entropy(uniform.T, dim=0), torch.full((3,), math.log(8)))


def test_statistics_split_the_loss() -> None:
    student, teacher, center = logits(4, 3, 7), logits(2, 3, 7, seed=1), torch.randn(7)
    statistics = teacher_statistics(student, teacher, center, 0.1, 0.07)
    probs = centred_softmax(teacher, center, 0.07)
    torch.testing.assert_close(statistics["teacher_entropy"].double(), entropy(probs).mean())
    logs = torch.log_softmax(student / 0.1, -1)
    gaps = [(probs[w] * (probs[w].log() - logs[v])).sum(-1).mean() for w in range(2) for v in range(4) if v != w]
    torch.testing.assert_close(statistics["kl"].double(), torch.stack(gaps).mean())


def test_center_moves_to_the_mean_over_processes() -> None:
    center, teacher = torch.randn(1, 6, dtype=torch.float64), logits(2, 5, 6)
    moved = ema_center(center, teacher, 0.9)
    torch.testing.assert_close(moved, 0.9 * center + 0.1 * teacher.mean((0, 1))[None])
    assert moved.shape == center.shape
    twice = ema_center(center[0], teacher, 0.5, all_reduce=lambda x: x + 1)
    torch.testing.assert_close(twice, 0.5 * center[0] + 0.5 * (teacher.mean((0, 1)) + 1))


@pytest.mark.parametrize("temps", [(0.0, 0.1), (0.1, -1.0), (math.inf, 0.1), (0.1, math.nan)])
def test_temperatures_are_checked(temps: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="temperatures"):
        cross_view_cross_entropy(logits(3, 2, 4), logits(2, 2, 4), torch.zeros(4), *temps)


def test_shapes_are_checked() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        cross_view_cross_entropy(logits(1, 2, 4), logits(2, 2, 4), torch.zeros(4), 0.1, 0.1)
    with pytest.raises(ConfigError, match="do not fit"):
        cross_view_cross_entropy(logits(3, 2, 4), logits(2, 2, 4), torch.zeros(5), 0.1, 0.1)
