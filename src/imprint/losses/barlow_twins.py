"""Barlow Twins' loss with its gradient in closed form: no D x D matrix where the batch is smaller than D, one else.

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


class BarlowTerms(NamedTuple):
    """The loss and its unweighted terms; only `loss` carries gradient.

    Attributes:
        loss: on_diagonal + lambd * off_diagonal.
        on_diagonal: sum of (C_ii - 1)^2.
        off_diagonal: sum of C_ij^2 over i != j.
    """

    loss: Tensor
    on_diagonal: Tensor
    off_diagonal: Tensor


def barlow_twins(
    z1_BD: Tensor, z2_BD: Tensor, lambd: float = 0.0051, *, eps: float = 1e-5, peers: Peers | None = None
) -> BarlowTerms:
    r"""Return Barlow Twins' loss (arXiv 2103.03230, Eq. 1 and 2).

    U = (Z1 - mean) / sqrt(var + eps), V likewise (biased variance, the BatchNorm without affine of the public code);
    C = U'V / n;  loss = sum_i (C_ii - 1)^2 + lambd sum_{i != j} C_ij^2

    Where n < D the second sum is <UU', VV'> / n^2 less the diagonal: two n x n matrices, of which each process holds
    its own rows. Else one D x D matrix is formed and kept for backward. Arithmetic is float32 for float16 and bfloat16
    inputs, also under autocast, and float64 for float64.

    Args:
        z1_BD: projections of the first view.
        z2_BD: of the second, row i belongs to the same image.
        lambd: weight of the redundancy term.
        eps: added to the variance.
        peers: the processes that share the batch; statistics run over all their rows.

    Returns:
        0-d tensors, float32 (float64 for float64 inputs).

    Raises:
        ConfigError: for shapes that do not fit together, fewer than two rows, or numbers out of range.
    """
    peers = peers or Peers()
    check_pair("barlow_twins", z1_BD, z2_BD, z1_BD.shape[0] * peers.count)
    if not (math.isfinite(lambd) and lambd >= 0 and math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"barlow_twins: lambd and eps must be finite and not negative, got {lambd} and {eps}.")
    with torch.autocast(z1_BD.device.type, enabled=False):
        return BarlowTerms(*_BarlowTwins.apply(wide(z1_BD), wide(z2_BD), lambd, eps, peers))


def cross_correlation(z1_BD: Tensor, z2_BD: Tensor, eps: float = 1e-5) -> Tensor:
    """Return C = U'V / n, (D, D), detached: the matrix that the loss pulls to the identity, for figures."""
    u_BD, v_BD = (_normalised(wide(z.detach()), eps) for z in (z1_BD, z2_BD))
    return u_BD.T @ v_BD / z1_BD.shape[0]


def _normalised(z_BD: Tensor, eps: float) -> Tensor:
    centred_BD = z_BD - z_BD.mean(0)
    return centred_BD / (centred_BD.square().mean(0) + eps).sqrt()


class _BarlowTwins(torch.autograd.Function):
    """The loss as a function of both projections.

    With G = dL/dC (2 (C_ii - 1) on the diagonal, 2 lambd C_ij off it): dL/dU = V G' / n, dL/dV = U G / n. In terms of
    the Gram matrices: dL/dU = 2 lambd VV'U / n^2 + V diag(g), g_i = (2 (C_ii - 1) - 2 lambd C_ii) / n.
    Through the normalisation: dL/dZ = (dU - U mean(U * dU)) / sigma; the mean of dU is zero, as U and V are centred.
    """

    @staticmethod
    def forward(
        ctx: Any, z1_BD: Tensor, z2_BD: Tensor, lambd: float, eps: float, peers: Peers
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, width = z1_BD.shape
        n = rows * peers.count
        gram = n < width
        mean_2D = peers.total(torch.stack([z1_BD.sum(0), z2_BD.sum(0)])) / n
        u_BD, v_BD = z1_BD - mean_2D[0], z2_BD - mean_2D[1]
        squares_2D = peers.total(torch.stack([column_dots(u_BD, u_BD), column_dots(v_BD, v_BD)]))
        scale_2D = (squares_2D / n + eps).rsqrt()
        u_BD.mul_(scale_2D[0])
        v_BD.mul_(scale_2D[1])
        kept: tuple[Tensor, ...]
        if gram:
            diagonal_D = peers.total(column_dots(u_BD, v_BD)) / n
            alone = peers.count == 1
            uu_BA = u_BD @ (u_BD if alone else peers.gather(u_BD)).T
            vv_BA = v_BD @ (v_BD if alone else peers.gather(v_BD)).T
            total = peers.total(torch.linalg.vecdot(uu_BA, vv_BA).sum()) / float(n) ** 2
            off = total - diagonal_D.square().sum()
            kept = (uu_BA, vv_BA)
        else:
            c_DD = peers.total(u_BD.T @ v_BD).div_(n)
            diagonal_D = c_DD.diagonal().clone()
            c_DD.diagonal().zero_()
            off = square_sum(c_DD)
            kept = (c_DD,)
        on = (diagonal_D - 1).square().sum()
        ctx.lambd, ctx.peers, ctx.gram = lambd, peers, gram
        ctx.save_for_backward(z1_BD, z2_BD, mean_2D, scale_2D, diagonal_D, *kept)
        ctx.mark_non_differentiable(on, off)
        return on + lambd * off, on, off

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        z1_BD, z2_BD, mean_2D, scale_2D, diagonal_D, *kept = ctx.saved_tensors
        lambd, peers = ctx.lambd, ctx.peers
        n = z1_BD.shape[0] * peers.count
        u_BD = (z1_BD - mean_2D[0]).mul_(scale_2D[0])
        v_BD = (z2_BD - mean_2D[1]).mul_(scale_2D[1])
        pull_D = 2 * (diagonal_D - 1) / n
        grads: list[Tensor | None] = [None, None]
        for i, (own_BD, other_BD) in enumerate(((u_BD, v_BD), (v_BD, u_BD))):
            if not (ctx.needs_input_grad[i] or (ctx.gram and peers.count > 1)):
                continue
            if ctx.gram:
                all_AD = own_BD if peers.count == 1 else peers.gather(own_BD)
                grad_BD = other_BD * (pull_D - 2 * lambd / n * diagonal_D)
                grad_BD.addmm_(kept[1 - i], all_AD, alpha=2 * lambd / float(n) ** 2)
                along_D = peers.total(column_dots(grad_BD, own_BD)) / n
            else:
                (c_DD,) = kept
                grad_BD = other_BD * pull_D
                grad_BD.addmm_(other_BD, c_DD.T if i == 0 else c_DD, alpha=2 * lambd / n)
                # mean(U * dU) = sum_j G_ij C_ij / n, known without another exchange.
                redundancy_D = torch.linalg.vector_norm(c_DD, dim=1 - i).square()
                along_D = (pull_D * diagonal_D * n + 2 * lambd * redundancy_D) / n
            grad_BD.addcmul_(own_BD, along_D, value=-1)
            grads[i] = grad_BD.mul_(scale_2D[i] * (upstream * peers.count))
        return grads[0], grads[1], None, None, None
