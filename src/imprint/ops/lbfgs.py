"""L-BFGS for many problems of one shape at once: every evaluation serves all that are not done yet.

Shapes: G problems, A of them still active, P parameters of each, M remembered steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ARMIJO = 1e-4
_SLACK = 1e-6  # of the value: differences below are rounding of float32 sums
_SMALLEST_STEP = 1e-10


@dataclass(frozen=True)
class Minima:
    """Where the problems ended.

    Attributes:
        x_GP: parameters.
        value_G: float64 values.
        gradient_G: largest absolute entry of each gradient.
        steps_G: accepted steps, int64.
        evaluations: calls of the function.
    """

    x_GP: Tensor
    value_G: Tensor
    gradient_G: Tensor
    steps_G: Tensor
    evaluations: int


@torch.no_grad()
def minimise(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start_GP: Tensor,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
    memory: int = 10,
) -> Minima:
    """Minimise G smooth convex functions by L-BFGS (Liu and Nocedal 1989) with Armijo's backtracking.

    There is no inner line search: at each evaluation every problem either accepts its trial point and turns to a new
    direction, or shortens its step by quadratic interpolation. Problems that are done leave the computation.

    Args:
        evaluate: (x_AP, which_A int64) -> (value_A float64, gradient_AP).
        start_GP: starting points; kept as they are.
        tolerance: a problem is done when no entry of its gradient is larger.
        max_steps: accepted steps per problem at most.
        memory: M.
    """
    which = torch.arange(len(start_GP), device=start_GP.device)
    x = start_GP.clone()
    value, gradient = evaluate(x, which)
    evaluations = 1
    result = Minima(
        x.clone(), value.clone(), gradient.abs().amax(1), torch.zeros_like(which), 0
    )  # filled in as problems end
    s_MAP, y_MAP = (x.new_zeros(memory, *x.shape) for _ in range(2))
    rho_MA = x.new_zeros(memory, len(x))
    gamma, steps = x.new_ones(len(x)), torch.zeros_like(which)
    direction, size = -gradient, 1.0 / gradient.norm(dim=1).clamp_min(1.0)
    while True:
        done = (gradient.abs().amax(1) <= tolerance) | (steps >= max_steps) | (size < _SMALLEST_STEP)
        if done.any():
            ended, keep = which[done], (~done).nonzero()[:, 0]
            result.x_GP[ended], result.value_G[ended] = x[done], value[done]
            result.gradient_G[ended], result.steps_G[ended] = gradient[done].abs().amax(1), steps[done]
            x, value, gradient, direction = x[keep], value[keep], gradient[keep], direction[keep]
            size, steps, gamma, which = size[keep], steps[keep], gamma[keep], which[keep]
            s_MAP, y_MAP, rho_MA = s_MAP[:, keep], y_MAP[:, keep], rho_MA[:, keep]
        if not len(which):
            return Minima(result.x_GP, result.value_G, result.gradient_G, result.steps_G, evaluations)
        slope = (gradient * direction).sum(1)
        trial = torch.addcmul(x, direction, size[:, None])
        new_value, new_gradient = evaluate(trial, which)
        evaluations += 1
        gain = new_value - value
        took = gain <= _ARMIJO * size * slope + _SLACK * value.abs()  # False for NaN
        # The parabola through value, slope and the trial's value has its minimum at -slope t / 2 (gain / t - slope).
        bend = 2.0 * (gain / size - slope)
        shorter = (-slope / bend).nan_to_num(0.0).clamp(0.1, 0.5).to(size) * size
        rows = took.nonzero()[:, 0]
        size = torch.where(took, torch.ones_like(size), shorter)
        if not len(rows):
            continue
        s, y = trial[rows] - x[rows], new_gradient[rows] - gradient[rows]
        x[rows], value[rows], gradient[rows] = trial[rows], new_value[rows], new_gradient[rows]
        curve, square = (s * y).sum(1), y.square().sum(1)
        good = curve > 1e-10 * square.clamp_min(1e-30)
        slot = steps[rows] % memory
        s_MAP[slot, rows], y_MAP[slot, rows] = s, y
        rho_MA[slot, rows] = torch.where(good, 1.0 / curve, 0.0)  # a pair with rho = 0 has no effect
        gamma[rows] = torch.where(good, curve / square, gamma[rows])
        steps[rows] += 1
        direction[rows] = _direction(gradient, s_MAP, y_MAP, rho_MA, gamma, steps, rows)


def _direction(
    gradient_AP: Tensor, s_MAP: Tensor, y_MAP: Tensor, rho_MA: Tensor, gamma_A: Tensor, steps_A: Tensor, rows: Tensor
) -> Tensor:
    """Return -H g of some problems by the two loops over remembered steps, newest first, then oldest first."""
    memory = len(s_MAP)
    q = gradient_AP[rows].clone()
    ages = [(steps_A[rows] - 1 - age) % memory for age in range(min(memory, int(steps_A[rows].max())))]
    alphas = []
    for slot in ages:
        alpha = rho_MA[slot, rows] * (s_MAP[slot, rows] * q).sum(1)
        q.addcmul_(y_MAP[slot, rows], alpha[:, None], value=-1.0)
        alphas.append(alpha)
    q.mul_(gamma_A[rows, None])
    for slot, alpha in zip(reversed(ages), reversed(alphas), strict=True):
        beta = rho_MA[slot, rows] * (y_MAP[slot, rows] * q).sum(1)
        q.addcmul_(s_MAP[slot, rows], (alpha - beta)[:, None])
    return q.neg_()
