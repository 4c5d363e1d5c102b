"""L-BFGS for many problems at once: each ends where it would end alone."""

from __future__ import annotations

import torch

from imprint.ops.lbfgs import minimise


def test_quadratics_of_any_scale_end_at_their_minima() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(5, 12, 12, generator=generator, dtype=torch.float64)
    matrices = roots @ roots.transpose(1, 2) + 0.1 * torch.eye(12)
    matrices *= torch.tensor([1e-2, 1.0, 10.0, 100.0, 1e4])[:, None, None]
    target = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    seen: list[int] = []

    def evaluate(x: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(which))
        gap = x - target[which]
        gradient = torch.einsum("apq,aq->ap", matrices[which], gap)
        return 0.5 * (gap * gradient).sum(1), gradient

    start = torch.zeros(5, 12, dtype=torch.float64)
    found = minimise(evaluate, start, tolerance=1e-7)
    assert (found.gradient_G <= 1e-7).all() and found.evaluations == len(seen) < 300
    assert not start.any() and seen[0] == 5 and seen[-1] < 5  # problems that are done leave
    torch.testing.assert_close(found.x_GP, target, rtol=1e-4, atol=1e-3)
    alone = minimise(lambda x, which: evaluate(x, which + 3), start[3:4], tolerance=1e-7)
    torch.testing.assert_close(alone.x_GP[0], found.x_GP[3])


def test_the_limit_of_steps_holds_and_a_minimum_is_left_at_once() -> None:
    def rosenbrock(x: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x[:, 0], x[:, 1]
        value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
        return value, torch.stack([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)], 1)

    start = torch.tensor([[-1.2, 1.0], [1.0, 1.0]], dtype=torch.float64)
    short = minimise(rosenbrock, start, max_steps=5)
    assert short.steps_G.tolist() == [5, 0] and float(short.value_G[0]) < float(rosenbrock(start, None)[0][0])
    full = minimise(rosenbrock, start, tolerance=1e-8)
    torch.testing.assert_close(full.x_GP, torch.ones(2, 2, dtype=torch.float64), rtol=1e-5, atol=1e-5)
