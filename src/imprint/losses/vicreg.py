"""VICReg's loss with its gradient in closed form: no D x D matrix where the batch is smaller than D, one a branch else.

Shape suffixes: B rows of this process, A of all processes, D width. n = A rows in all.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError
from imprint.losses.redundancy import Peers, check_pair, column_dots, square_sum, wide


class VICRegTerms(NamedTuple):
    """The loss and its unweighted terms; only `loss` carries gradient.

    Attributes:
        loss: weighted sum.
        invariance: mean squared distance of positives over the batch and D.
        variance: hinge on the standard deviations, averaged over the two branches.
        covariance: squared covariances between different dimensions over D, summed over the two branches.
    """

    loss: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(
    x_BD: Tensor,
    y_BD: Tensor,
    *,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    peers: Peers | None = None,
) -> VICRegTerms:
    r"""Return VICReg's loss (arXiv 2105.04906, Eq. 1 to 6; the public code's normalisations).

    s = sum (x - y)^2 / (n D);  v = 1/2 sum_branches mean_d max(0, gamma - sqrt(Var_d + eps));
    c = sum_branches sum_{i != j} C_ij^2 / D;  loss = sim s + std v + cov c

    with unbiased variance and C = Xc'Xc / (n - 1). (The paper's Eq. 6 adds the variance terms of the two branches, its
    code, followed here, averages them.)

    Where n < D the covariance term comes from the n x n matrix XcXc', of which each process holds its own rows; else
    from the D x D matrix, of which one a branch is kept for backward. Arithmetic is float32 for float16 and bfloat16
    inputs, also under autocast, and float64 for float64.

    Args:
        x_BD: embeddings of the first branch, row i belongs to the same image as row i of the second.
        y_BD: embeddings of the second branch.
        sim_coeff: weight of the invariance term.
        std_coeff: weight of the variance term.
        cov_coeff: weight of the covariance term.
        gamma: standard deviation aimed at.
        eps: added to the variance under the root.
        peers: the processes that share the batch; statistics run over all their rows.

    Returns:
        0-d tensors, float32 (float64 for float64 inputs). `invariance` is that of this process's rows.

    Raises:
        ConfigError: for shapes that do not fit together, fewer than two rows, or weights that are no finite numbers.
    """
    peers = peers or Peers()
    check_pair("vicreg", x_BD, y_BD, x_BD.shape[0] * peers.count)
    weights = (sim_coeff, std_coeff, cov_coeff, gamma, eps)
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ConfigError(f"vicreg: weights, gamma and eps must be finite and not negative, got {weights}.")
    with torch.autocast(x_BD.device.type, enabled=False):
        return VICRegTerms(*_VICReg.apply(wide(x_BD), wide(y_BD), weights, peers))


def covariance(x_BD: Tensor) -> Tensor:
    """Return the covariance matrix Xc'Xc / (n - 1), (D, D), detached: for figures."""
    centred_BD = wide(x_BD.detach())
    centred_BD = centred_BD - centred_BD.mean(0)
    return centred_BD.T @ centred_BD / (x_BD.shape[0] - 1)


class _VICReg(torch.autograd.Function):
    """The loss as a function of both branches.

    Per branch, with S = diag(Xc'Xc), K = XcXc' and m_d = 1 where the hinge is active:
    d c / d Xc = 4 (K Xc - Xc S) / ((n - 1)^2 D);  d v / d Xc = -Xc diag(m / std) / (2 D (n - 1)).
    Both are centred already, so the mean's own gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, y_BD: Tensor, weights: tuple[float, float, float, float, float], peers: Peers
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sim, std, cov, gamma, eps = weights
        rows, width = x_BD.shape
        n = rows * peers.count
        gram = n < width
        sums_2D = peers.total(torch.stack([x_BD.sum(0), y_BD.sum(0)])) / n
        kept: list[Tensor] = []
        variance = covariance = x_BD.new_zeros(())
        for z_BD, mean_D in zip((x_BD, y_BD), sums_2D, strict=True):
            centred_BD = z_BD - mean_D
            squares_D = peers.total(column_dots(centred_BD, centred_BD))
            deviation_D = (squares_D / (n - 1) + eps).sqrt()
            variance = variance + (gamma - deviation_D).clamp_min(0).mean() / 2
            if gram:
                all_AD = peers.gather(centred_BD) if peers.count > 1 else centred_BD
                matrix = centred_BD @ all_AD.T  # this process's rows of K
                total = peers.total(square_sum(matrix)) - squares_D.square().sum()
            else:
                matrix = peers.total(centred_BD.T @ centred_BD)
                matrix.diagonal().zero_()
                total = square_sum(matrix)
            covariance = covariance + total / (float(n - 1) ** 2 * width)
            # The factor of Xc in the gradient that is the same for all rows: the hinge, and K's diagonal part.
            slope_D = torch.where(deviation_D < gamma, -std / (2 * width * (n - 1)) / deviation_D, 0.0)
            if gram:
                slope_D -= squares_D * (4 * cov / (float(n - 1) ** 2 * width))
            kept += [matrix, slope_D]
        invariance = (x_BD - y_BD).square_().mean()
        ctx.weights, ctx.peers, ctx.gram = (sim, cov), peers, gram
        ctx.save_for_backward(x_BD, y_BD, sums_2D, *kept)
        ctx.mark_non_differentiable(invariance, variance, covariance)
        return sim * invariance + std * variance + cov * covariance, invariance, variance, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_BD, y_BD, sums_2D, *kept = ctx.saved_tensors
        (sim, cov), peers = ctx.weights, ctx.peers
        rows, width = x_BD.shape
        n = rows * peers.count
        factor = 4 * cov / (float(n - 1) ** 2 * width) * peers.count
        pull = 2 * sim / (rows * width)
        grads: list[Tensor | None] = [None, None]
        for i, (z_BD, other_BD) in enumerate(((x_BD, y_BD), (y_BD, x_BD))):
            if not (ctx.needs_input_grad[i] or (ctx.gram and peers.count > 1)):
                continue
            matrix, slope_D = kept[2 * i : 2 * i + 2]
            centred_BD = z_BD - sums_2D[i]
            grad_BD = centred_BD * (slope_D * peers.count)
            if ctx.gram:
                all_AD = peers.gather(centred_BD) if peers.count > 1 else centred_BD
                grad_BD.addmm_(matrix, all_AD, alpha=factor)
            else:
                grad_BD.addmm_(centred_BD, matrix, alpha=factor)
            grads[i] = grad_BD.add_(z_BD, alpha=pull).sub_(other_BD, alpha=pull).mul_(upstream)
        return grads[0], grads[1], None, None
