r"""The loss of colorization: cross entropy against a few soft classes per pixel, weighed by the rarity of the colour.

Shape suffixes: P pixels, D width, Q bins of the ab plane, K bins that a target names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError
from imprint.losses.streamed import rows_per_part, streamed_sum


def sparse_cross_entropy(logits_PQ: Tensor, index_PK: Tensor, mass_PK: Tensor) -> Tensor:
    r"""Return - sum_p sum_k m_pk log softmax(z_p)[i_pk], the cross entropy against targets with K entries per row.

    d loss / d z_p = (sum_k m_pk) softmax(z_p) - sum_k m_pk e_{i_pk}. No dense targets are made: log-probabilities are
    gathered, and the gradient is the softmax with K entries subtracted in place.

    Args:
        logits_PQ: z.
        index_PK: int64 classes of each row.
        mass_PK: m >= 0, of any sum per row; no gradient reaches them.

    Returns:
        0-d loss, a sum over rows; float32 (float64 for float64). Logits of 1e4 stay finite in any floating dtype.

    Raises:
        ConfigError: for shapes that do not fit.
    """
    if logits_PQ.ndim != 2 or index_PK.shape != mass_PK.shape or index_PK.shape[:1] != logits_PQ.shape[:1]:
        raise ConfigError(
            f"sparse_cross_entropy: logits {tuple(logits_PQ.shape)}, classes {tuple(index_PK.shape)} and masses "
            f"{tuple(mass_PK.shape)} are not (P, Q), (P, K) and (P, K)."
        )
    with torch.autocast(logits_PQ.device.type, enabled=False):
        loss: Tensor = _Sparse.apply(logits_PQ, index_PK, mass_PK.detach())
    return loss


def colour_cross_entropy(
    z_PD: Tensor, weight_QD: Tensor, bias_Q: Tensor, index_PK: Tensor, mass_PK: Tensor, *, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return the loss of Eq. 2 (arXiv 1603.08511), - 1/P sum_p v_p sum_q Z_pq log Z^_pq, and the share of right bins.

    Z^ = softmax(W z + b) is made for some pixels at a time, with its gradient, so that neither the logits nor the
    targets of all pixels are ever in memory.

    Args:
        z_PD: features of the pixels.
        weight_QD: W, of the classifier.
        bias_Q: b.
        index_PK: int64, the bins of each pixel's target, the nearest first.
        mass_PK: v_p Z_pk, the shares of these bins times the pixel's weight.
        rows: pixels at a time; None chooses.

    Returns:
        0-d loss and 0-d share of pixels whose likeliest bin is the nearest one, detached; both are means over all P,
        float32 (float64 for float64).

    Raises:
        ConfigError: for shapes that do not fit.
    """
    count, width = len(z_PD), len(weight_QD)
    if weight_QD.shape[1:] != z_PD.shape[1:] or bias_Q.shape != (width,) or len(index_PK) != count or count == 0:
        raise ConfigError(
            f"colour_cross_entropy: features {tuple(z_PD.shape)}, weights {tuple(weight_QD.shape)}, bias "
            f"{tuple(bias_Q.shape)} and classes {tuple(index_PK.shape)} do not fit together."
        )
    hits: list[Tensor] = []

    def part(logits_pQ: Tensor, at: slice) -> Tensor:
        with torch.no_grad():
            hits.append((logits_pQ.argmax(1) == index_PK[at, 0]).sum())
        return sparse_cross_entropy(logits_pQ, index_PK[at], mass_PK[at])

    # The bias is one more column, of ones.
    dtype = _product_dtype(z_PD)
    ones_P1 = torch.ones_like(z_PD[:, :1], dtype=dtype)
    z_PE = torch.cat([z_PD.to(dtype), ones_P1], 1)
    weight_QE = torch.cat([weight_QD, bias_Q[:, None]], 1).to(dtype)
    total = streamed_sum(z_PE, weight_QE, part, rows or rows_per_part(width, z_PD.device))
    return total / count, torch.stack(hits).sum().to(total.dtype) / count


def _product_dtype(z: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer would multiply here; float16, whose gradients underflow, as float32."""
    dtype = z.dtype
    if torch.is_autocast_enabled(z.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(z.device.type)
    return torch.float32 if dtype == torch.float16 else dtype


class _Sparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_PQ: Tensor, index_PK: Tensor, mass_PK: Tensor) -> Tensor:
        dtype = torch.float64 if logits_PQ.dtype == torch.float64 else torch.float32
        z_PQ, mass_PK = logits_PQ.to(dtype), mass_PK.to(dtype)
        lse_P1 = z_PQ.logsumexp(1, keepdim=True)
        ctx.save_for_backward(logits_PQ, lse_P1, index_PK, mass_PK)
        return (mass_PK * (lse_P1 - z_PQ.gather(1, index_PK))).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits_PQ, lse_P1, index_PK, mass_PK = ctx.saved_tensors
        mass_PK = mass_PK * upstream
        grad_PQ = (logits_PQ.to(lse_P1.dtype) - lse_P1).exp_().mul_(mass_PK.sum(1, keepdim=True))
        grad_PQ.scatter_add_(1, index_PK, -mass_PK)
        return grad_PQ.to(logits_PQ.dtype), None, None
