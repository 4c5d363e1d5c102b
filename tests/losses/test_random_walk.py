"""The walk's algebra against loops over nodes, and its closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.random_walk import EPSILON, palindrome_loss, return_rate, transitions, walks


def naive_step(source: list[list[float]], target: list[list[float]], tau: float, dropped: list[list[bool]]):
    """One transition matrix from the equation, edge by edge."""

    def unit(v: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in v))
        return [x / length for x in v]

    source, target = [unit(v) for v in source], [unit(v) for v in target]
    rows = []
    for i, q in enumerate(source):
        weights = [
            0.0 if dropped[i][j] else math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / tau)
            for j, k in enumerate(target)
        ]
        rows.append([w / sum(weights) for w in weights])
    return rows


def product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    n = len(a)
    return [[sum(a[i][m] * b[m][j] for m in range(n)) for j in range(n)] for i in range(n)]


def naive_loss(nodes: torch.Tensor, tau: float, dropped: torch.Tensor, shortest: int) -> float:
    """Mean over lengths, clips and nodes; each length multiplies its whole chain anew."""
    batch, frames, count, _ = nodes.shape
    values = nodes.tolist()
    mask = dropped.tolist()
    by_length = []
    for k in range(shortest, frames):
        terms = []
        for b in range(batch):
            chain = [naive_step(values[b][t], values[b][t + 1], tau, mask[b][t][0]) for t in range(k)]
            chain += [naive_step(values[b][t + 1], values[b][t], tau, mask[b][t][1]) for t in reversed(range(k))]
            trip = chain[0]
            for matrix in chain[1:]:
                trip = product(trip, matrix)
            terms += [-math.log(trip[i][i] + EPSILON) for i in range(count)]
        by_length.append(sum(terms) / len(terms))
    return sum(by_length) / len(by_length)


@pytest.mark.parametrize(("frames", "shortest", "rate"), [(2, 1, 0.0), (5, 1, 0.3), (5, 2, 0.3), (4, 3, 0.5)])
def test_loss_of_all_lengths_equals_a_loop_over_edges(frames: int, shortest: int, rate: float) -> None:
    torch.manual_seed(0)
    nodes = torch.randn(2, frames, 6, 4, dtype=torch.float64)
    dropped = torch.rand(2, frames - 1, 2, 6, 6) < rate
    dropped[..., 0] = False  # every node keeps an edge
    forward, backward = transitions(nodes, 0.3, dropped)
    torch.testing.assert_close(forward.sum(-1), torch.ones_like(forward[..., 0]))
    torch.testing.assert_close(backward.sum(-1), torch.ones_like(backward[..., 0]))
    assert (forward[dropped[:, :, 0]] == 0).all() and (backward[dropped[:, :, 1]] == 0).all()
    found = float(palindrome_loss(forward, backward, shortest=shortest))
    assert found == pytest.approx(naive_loss(nodes, 0.3, dropped, shortest), rel=1e-9)


def test_prefix_products_are_the_walks() -> None:
    torch.manual_seed(1)
    forward, backward = transitions(torch.randn(3, 4, 5, 8, dtype=torch.float64), 0.2)
    there, back = walks(forward, backward)
    assert len(there) == len(back) == 3
    torch.testing.assert_close(there[2], forward[:, 0] @ forward[:, 1] @ forward[:, 2])
    torch.testing.assert_close(back[2], backward[:, 2] @ backward[:, 1] @ backward[:, 0])
    expected = (there[2] @ back[2]).argmax(-1).eq(torch.arange(5)).double().mean()
    assert float(return_rate(forward, backward)) == float(expected)


def test_nodes_that_are_all_alike_cost_log_n_and_distinct_ones_in_a_still_clip_nothing() -> None:
    same = transitions(torch.ones(2, 4, 9, 3), 0.05)
    assert float(palindrome_loss(*same)) == pytest.approx(math.log(9), rel=1e-5)
    still = transitions(torch.eye(9).expand(2, 4, 9, 9), 0.05)
    assert float(palindrome_loss(*still)) < 1e-6 and float(return_rate(*still)) == 1.0


def test_a_warm_walk_cannot_find_home_however_good_the_nodes() -> None:
    """Cosines end at 1: at temperature 1 even nodes that are as far apart as can be cost most of log N."""
    apart = torch.eye(49).sub(1 / 49).expand(1, 4, 49, 49)
    assert float(palindrome_loss(*transitions(apart, 1.0))) > 0.9 * math.log(49)
    assert float(palindrome_loss(*transitions(apart, 0.05))) < 1e-3


def test_a_node_without_edges_goes_anywhere() -> None:
    dropped = torch.zeros(1, 1, 2, 4, 4, dtype=torch.bool)
    dropped[0, 0, 0, 1] = True
    forward, _ = transitions(torch.randn(1, 2, 4, 3), 0.1, dropped)
    torch.testing.assert_close(forward[0, 0, 1], torch.full((4,), 0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_and_hopeless_walks_stay_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    nodes = torch.randn(2, 6, 12, 4).mul(100).to(dtype).requires_grad_()
    dropped = torch.rand(2, 5, 2, 12, 12) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        forward, backward = transitions(nodes, 0.001, dropped)  # steps that are certain: chances of 0 and 1
        loss = palindrome_loss(forward, backward)
    assert forward.dtype == loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss) and nodes.grad is not None and torch.isfinite(nodes.grad).all()
    assert nodes.grad.abs().sum() > 0


def test_gradients_reach_every_frame_and_pass_the_numerical_check() -> None:
    torch.manual_seed(0)
    nodes = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    dropped = torch.rand(1, 2, 2, 4, 4) < 0.2
    assert torch.autograd.gradcheck(lambda x: palindrome_loss(*transitions(x, 0.5, dropped)), (nodes,))
    palindrome_loss(*transitions(nodes, 0.5)).backward()
    assert nodes.grad is not None and (nodes.grad.abs().sum((0, 2, 3)) > 0).all()


def test_two_halves_make_the_whole() -> None:
    torch.manual_seed(0)
    nodes = torch.randn(4, 4, 5, 6)
    whole = palindrome_loss(*transitions(nodes, 0.1))
    halves = [palindrome_loss(*transitions(part, 0.1)) for part in nodes.chunk(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_what_does_not_fit_is_refused() -> None:
    nodes = torch.randn(1, 3, 4, 2)
    with pytest.raises(ConfigError, match="T >= 2"):
        transitions(nodes[:, :1], 0.1)
    with pytest.raises(ConfigError, match="temperature"):
        transitions(nodes, 0.0)
    with pytest.raises(ConfigError, match="dropped edges"):
        transitions(nodes, 0.1, torch.zeros(1, 2, 4, 4, dtype=torch.bool))
    forward, backward = transitions(nodes, 0.1)
    with pytest.raises(ConfigError, match="between 1 and 2"):
        palindrome_loss(forward, backward, shortest=3)
    with pytest.raises(ConfigError, match="two"):
        palindrome_loss(forward, backward[:, :1])
