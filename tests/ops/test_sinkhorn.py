"""Sinkhorn against the public code's rounds, its limits, closed forms, and itself in parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.ops.sinkhorn import sinkhorn


def published(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Rescale the whole matrix, prototypes then samples, as SwAV's and DINOv2's codes do."""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    for _ in range(rounds):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q / q.sum(0, keepdim=True)).T


def scores_of(*shape: int, scale: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize("rounds", [0, 1, 3, 10])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (40, 3), (3, 40), (64, 2000)])
def test_equals_the_public_rounds(shape: tuple[int, int], rounds: int) -> None:
    scores = scores_of(*shape)
    torch.testing.assert_close(sinkhorn(scores, 0.05, rounds), published(scores, 0.05, rounds), rtol=1e-10, atol=1e-14)


def test_no_round_is_a_softmax() -> None:
    scores = scores_of(6, 9)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 0), torch.softmax(scores / 0.05, 1), rtol=1e-12, atol=0)


def test_many_rounds_balance_the_prototypes() -> None:
    codes = sinkhorn(scores_of(60, 12), 0.1, 500)
    torch.testing.assert_close(codes.sum(1), torch.ones(60, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(codes.sum(0), torch.full((12,), 5.0, dtype=torch.float64), rtol=1e-6, atol=0)
    # The optimum has the form diag(v) exp(S / eps) diag(u): its logarithm minus S / eps is a sum of row and column.
    rest = codes.log() - scores_of(60, 12) / 0.1
    mixed = rest - rest[:1] - rest[:, :1] + rest[:1, :1]
    assert mixed.abs().max() < 1e-9


def test_equal_scores_give_uniform_codes() -> None:
    torch.testing.assert_close(sinkhorn(torch.full((4, 5), 0.7), 0.05, 3), torch.full((4, 5), 0.2))


def test_a_permutation_is_found() -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    codes = sinkhorn(torch.eye(16)[order], 0.05, 3)
    assert torch.equal(codes.argmax(1), order) and codes.amax(1).min() > 0.999


def test_samples_and_prototypes_may_come_in_any_order() -> None:
    scores = scores_of(10, 6)
    rows, columns = torch.randperm(10), torch.randperm(6)
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns], 0.05, 3), sinkhorn(scores, 0.05, 3)[rows][:, columns])


def test_a_shift_of_all_scores_changes_nothing() -> None:
    scores = scores_of(10, 6)
    torch.testing.assert_close(sinkhorn(scores + 37.0, 0.05, 3), sinkhorn(scores, 0.05, 3), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rounds", [0, 3, 10])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_scores_of_1e4_stay_finite(dtype: torch.dtype, rounds: int, scale: float) -> None:
    codes = sinkhorn(scores_of(33, 17, scale=scale, dtype=dtype), 0.05, rounds)
    assert codes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(codes).all() and codes.min() >= 0
    torch.testing.assert_close(codes.sum(1), torch.ones(33, dtype=codes.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_rows_and_prototypes_far_below_the_others_stay_finite(rounds: int) -> None:
    scores = scores_of(8, 6, dtype=torch.float32)
    scores[0] -= 1e4  # its mass vanishes beside the others
    scores[:, 5] -= 1e4  # nobody's prototype
    codes = sinkhorn(scores, 0.05, rounds)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(8))
    torch.testing.assert_close(
        sinkhorn(scores[1:, :5], 0.05, 1), sinkhorn(scores, 0.05, 1)[1:, :5], rtol=1e-3, atol=1e-5
    )


def test_single_precision_is_close_to_double() -> None:
    scores = scores_of(200, 300).clamp(-1, 1)
    torch.testing.assert_close(
        sinkhorn(scores.float(), 0.05, 3).double(), sinkhorn(scores, 0.05, 3), rtol=1e-4, atol=1e-7
    )


def test_problems_side_by_side_are_problems_alone() -> None:
    scores = scores_of(2, 3, 7, 5)
    codes = sinkhorn(scores, 0.05, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(codes[i, j], sinkhorn(scores[i, j], 0.05, 3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("leading", [(), (2,), (2, 2)])
@pytest.mark.parametrize("rounds", [0, 3])
def test_last_rows_are_rows_of_the_whole(leading: tuple[int, ...], rounds: int) -> None:
    scores = scores_of(*leading, 9, 5)
    torch.testing.assert_close(sinkhorn(scores, 0.05, rounds, last=4), sinkhorn(scores, 0.05, rounds)[..., -4:, :])


def test_samples_of_no_weight_move_nothing() -> None:
    scores = scores_of(2, 9, 5)
    weight = torch.ones(9, dtype=torch.float64)
    weight[:4] = 0
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3, weight_B=weight)[:, 4:], sinkhorn(scores[:, 4:], 0.05, 3))
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3, weight_B=torch.ones(9)), sinkhorn(scores, 0.05, 3))


def test_memory_is_taken_over_on_request_only() -> None:
    scores = scores_of(9, 5, dtype=torch.float32)
    kept = scores.clone()
    expected = sinkhorn(scores, 0.05, 3)
    assert torch.equal(scores, kept)
    codes = sinkhorn(scores, 0.05, 3, overwrite=True)
    assert codes.data_ptr() == scores.data_ptr() and torch.equal(codes, expected)
    strided = kept.T.contiguous().T
    torch.testing.assert_close(sinkhorn(strided, 0.05, 3, overwrite=True), expected)


def test_no_gradient_and_no_autocast() -> None:
    scores = scores_of(9, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores, 0.05, 3)
    assert not codes.requires_grad
    assert torch.equal(codes, sinkhorn(scores, 0.05, 3))


def test_parts_that_share_sums_equal_the_whole() -> None:
    """Two processes in one: `reduce` adds what the other one brought, recorded from a run over the whole."""
    scores = scores_of(2, 10, 6, scale=50.0)
    sums: list[Tensor] = []
    parts = [scores[:, :3], scores[:, 3:]]

    def first_round(part: Tensor, heard: list[Tensor]) -> Tensor:
        def reduce(x: Tensor) -> Tensor:
            heard.append(x.clone())
            return x if len(sums) < len(heard) else sums[len(heard) - 1]

        return sinkhorn(part, 0.05, 3, reduce=reduce, reduce_max=lambda _: scores.amax((1, 2)).unsqueeze(-1))

    for known in range(3):  # each pass learns one more round's sum over both parts
        heard: list[list[Tensor]] = [[], []]
        for part, record in zip(parts, heard, strict=True):
            first_round(part, record)
        sums.append(heard[0][known] + heard[1][known])
    codes = torch.cat([first_round(part, []) for part in parts], dim=1)
    torch.testing.assert_close(codes, sinkhorn(scores, 0.05, 3), rtol=1e-9, atol=1e-14)


def test_no_sample_here_is_no_error() -> None:
    calls = []
    codes = sinkhorn(torch.empty(2, 0, 5), 0.05, 3, reduce=lambda x: calls.append(x.sum()) or x + 1.0)
    assert codes.shape == (2, 0, 5) and [float(c) for c in calls] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        sinkhorn(torch.zeros(2, 2), epsilon, 3)


def test_iterations_and_shapes_are_checked() -> None:
    with pytest.raises(ConfigError, match="iterations -1"):
        sinkhorn(torch.zeros(2, 2), 0.05, -1)
    for bad in (torch.zeros(2), torch.zeros(2, 0), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"\(\.\.\., B, K\)"):
            sinkhorn(bad, 0.05, 3)
