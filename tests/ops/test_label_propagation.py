"""Propagation against a loop over single patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from imprint.ops.label_propagation import propagate, stretched


def naive(
    target: Tensor, context: Tensor, labels: Tensor, topk: int, radius: int, temperature: float, window: str, free: bool
) -> Tensor:
    h, w, _ = target.shape
    out = torch.zeros(h, w, labels.shape[-1], dtype=target.dtype)
    for y in range(h):
        for x in range(w):
            found = []
            for n in range(len(context)):
                for v in range(h):
                    for u in range(w):
                        dy, dx = v - y, u - x
                        inside = max(abs(dy), abs(dx)) <= radius if window == "square" else math.hypot(dy, dx) < radius
                        if radius == 0 or inside or (free and n == 0):
                            found.append((float(target[y, x] @ context[n, v, u]), n, v, u))
            best = sorted(found, reverse=True)[:topk]
            weights = [math.exp(a / temperature) for a, *_ in best]
            for weight, (_, n, v, u) in zip(weights, best, strict=True):
                out[y, x] += weight / sum(weights) * labels[n, v, u]
    return out


@pytest.mark.parametrize(
    ("topk", "radius", "window", "free", "tile"),
    [
        (5, 2, "square", False, 3),
        (3, 3, "disc", True, 4),
        (4, 2, "disc", False, 64),
        (7, 0, "square", False, 2),
        (500, 1, "square", False, 5),  # fewer neighbours than K
        (2, 1, "disc", False, 3),  # the same place alone
    ],
)
def test_equals_the_loop(topk: int, radius: int, window: str, free: bool, tile: int) -> None:
    torch.manual_seed(0)
    target = normalize(torch.randn(7, 9, 5, dtype=torch.float64), dim=-1)
    context = normalize(torch.randn(3, 7, 9, 5, dtype=torch.float64), dim=-1)
    labels = torch.rand(3, 7, 9, 3, dtype=torch.float64).softmax(-1)
    got = propagate(
        target, context, labels,
        topk=topk, radius=radius, temperature=0.1, window=window, first_anywhere=free, tile=tile,
    )  # fmt: skip
    torch.testing.assert_close(got, naive(target, context, labels, topk, radius, 0.1, window, free))
    torch.testing.assert_close(got.sum(-1), torch.ones(7, 9, dtype=torch.float64))


def test_neighbourhood_restricts_before_the_best_are_taken() -> None:
    """The best match of all lies outside; the K come from inside all the same."""
    target = torch.zeros(1, 6, 2)
    target[..., 0] = 1.0
    context = torch.zeros(1, 1, 6, 2)
    context[0, 0, :, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 1.0])
    labels = torch.eye(6)[None, None]
    got = propagate(target, context, labels, topk=2, radius=1, temperature=0.1)
    assert got[0, 0, 5] == 0 and torch.equal(got[0, 0].nonzero().flatten(), torch.tensor([0, 1]))


def test_stretched_by_channel() -> None:
    labels = torch.tensor([[[0.2, 0.6]], [[0.0, 0.0]], [[0.3, 0.3]]])
    torch.testing.assert_close(stretched(labels), torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]]]))
