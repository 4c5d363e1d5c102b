"""Swapped prediction against its equation, closed forms, and itself in parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses import distillation
from imprint.losses.clustering import code_statistics, swapped_prediction


def naive(scores: Tensor, codes: Tensor, tau: float) -> Tensor:
    """Equation 6 of SwAV with loops over codes, views and images; means as in the public code."""
    per_code = []
    for w in range(codes.shape[0]):
        per_view = []
        for v in range(scores.shape[0]):
            if v != w:
                rows = [-(codes[w, b] * torch.log_softmax(scores[v, b] / tau, 0)).sum() for b in range(codes.shape[1])]
                per_view.append(torch.stack(rows).mean())
        per_code.append(torch.stack(per_view).mean())
    return torch.stack(per_code).mean()


def case(views: int, targets: int, batch: int = 3, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(views, batch, width, generator=generator, dtype=torch.float64)
    codes = torch.softmax(torch.randn(targets, batch, width, generator=generator, dtype=torch.float64) * 3, -1)
    return scores, codes


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize(("views", "targets"), [(2, 1), (2, 2), (8, 2), (4, 3)])
def test_equals_the_loops(views: int, targets: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "_rows_per_chunk", lambda width, device: rows)
    scores, codes = case(views, targets)
    kept = codes.clone()
    codes.requires_grad_()
    scores.requires_grad_()
    expected = naive(scores, kept, 0.1)
    (want,) = torch.autograd.grad(expected, scores)
    loss = swapped_prediction(scores, codes, 0.1)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(scores.grad, want, rtol=1e-10, atol=1e-14)
    assert codes.grad is None and torch.equal(codes, kept), "codes take no gradient and are not touched"


def test_uniform_predictions_cost_log_k() -> None:
    _, codes = case(2, 2, width=7)
    loss = swapped_prediction(torch.zeros(5, 3, 7), codes.float(), 0.1)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_certain_and_right_predictions_cost_nothing() -> None:
    codes = torch.eye(4)[None].repeat(2, 1, 1)
    assert swapped_prediction(codes * 1e4, codes, 0.1).item() == 0.0


def test_parts_are_a_sequence_of_views() -> None:
    scores, codes = case(5, 2)
    whole = swapped_prediction(scores, codes, 0.1)
    torch.testing.assert_close(swapped_prediction([scores[:2], scores[2:]], codes, 0.1), whole)


def test_halves_of_the_batch_average_to_the_whole() -> None:
    scores, codes = case(4, 2, batch=6)
    halves = [swapped_prediction(scores[:, i : i + 3], codes[:, i : i + 3], 0.1) for i in (0, 3)]
    torch.testing.assert_close(sum(halves) / 2, swapped_prediction(scores, codes, 0.1), rtol=1e-12, atol=0)


def test_overwriting_gives_the_same_gradient() -> None:
    scores, codes = case(4, 2)
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    swapped_prediction(a * 2, codes, 0.1).backward()
    consumed = b * 2
    (swapped_prediction(consumed, codes, 0.1, overwrite=True) * 1.0).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=0)
    with pytest.raises(ConfigError, match="leaf"):
        swapped_prediction(b, codes, 0.1, overwrite=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_1e4_stay_finite(dtype: torch.dtype) -> None:
    scores, codes = case(4, 2)
    leaf = (scores * 1e4).clamp(-1e4, 1e4).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = swapped_prediction(leaf, codes.to(dtype), 0.1)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_statistics_tell_one_prototype_from_many() -> None:
    one = torch.zeros(2, 8, 4)
    one[..., 0] = 1
    found = code_statistics(one)
    assert found["code_entropy"] == 0 and found["prototypes_used"] == 1 / 4
    every = torch.eye(4).repeat(2, 2, 1)
    assert code_statistics(every)["prototypes_used"] == 1
    few_rows = code_statistics(torch.eye(100)[None, :8])
    assert few_rows["prototypes_used"] == 1, "8 codes cannot use more than 8"
    uniform = code_statistics(torch.full((2, 3, 5), 0.2))
    assert float(uniform["code_entropy"]) == pytest.approx(math.log(5))


def test_arguments_are_checked() -> None:
    scores, codes = case(3, 2)
    with pytest.raises(ConfigError, match="do not fit"):
        swapped_prediction(scores[:, :2], codes, 0.1)
    with pytest.raises(ConfigError, match="do not fit"):
        swapped_prediction(scores, codes[0], 0.1)
    for few in (scores[:1], scores[:0]):
        with pytest.raises(ConfigError, match="no code to predict"):
            swapped_prediction(few, codes[:1], 0.1)
    with pytest.raises(ConfigError, match="no code to predict"):
        swapped_prediction(scores[:, :0], codes[:, :0], 0.1)
    for tau in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            swapped_prediction(scores, codes, tau)
