"""Balanced targets without their matrix: Sinkhorn-Knopp over the products of vectors and prototypes, part by part.

Shape suffixes: M rows of this process, D width, K prototypes; lower case: a part of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError

Reduce = Callable[[Tensor], Tensor]
_LEAST, _MOST = 1e-30, 1e30


def _same(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def sinkhorn_centre(
    z_MD: Tensor,
    weight_KD: Tensor,
    temperature: float,
    iterations: int,
    *,
    reduce: Reduce = _same,
    reduce_max: Reduce = _same,
    rows: int | None = None,
) -> Tensor:
    r"""Return the centre c with which softmax((z W^T - c) / tau) are the codes of `ops.sinkhorn.sinkhorn`.

    Its codes are diag(v) exp(S / tau) diag(u) with rows of sum 1, S = z W^T: the softmax of S / tau + log u, so
    c = -tau log u is all that is needed. u takes one pass over the rows a round,

        u_k ~ 1 / sum_m v_m exp(S_mk / tau),    v_m = 1 / sum_k exp(S_mk / tau) u_k  (v_m = 1 in the first round),

    in which a part of S is made, used and forgotten: memory O(part x K) for `iterations` more products. Sums of the
    first round are kept relative to the largest score seen so far.

    Args:
        z_MD: vectors before the prototypes; M may be 0 and may differ between processes.
        weight_KD: the prototypes as they are multiplied.
        temperature: tau > 0.
        iterations: rounds, >= 0; 0 gives c = 0.
        reduce: sums over processes; called once a round.
        reduce_max: takes the maximum over processes; called once, if there are rounds.
        rows: rows of a part; None chooses.

    Returns:
        (K,) float32 (float64 for float64 vectors).

    Raises:
        ConfigError: for a temperature that is not positive, fewer than 0 iterations, or shapes that do not fit.
    """
    if not 0 < temperature < math.inf or iterations < 0:
        raise ConfigError(
            f"sinkhorn_centre: temperature {temperature} must be positive and iterations {iterations} at least 0."
        )
    if z_MD.ndim != 2 or weight_KD.ndim != 2 or z_MD.shape[1] != weight_KD.shape[1]:
        raise ConfigError(f"sinkhorn_centre: {tuple(z_MD.shape)} and {tuple(weight_KD.shape)} are not (M, D), (K, D).")
    dtype = torch.float64 if z_MD.dtype == torch.float64 else torch.float32
    width = weight_KD.shape[0]
    step = rows or max(64, (2**22 if z_MD.device.type == "cpu" else 2**26) // width)
    u_K = torch.ones(width, dtype=dtype, device=z_MD.device)
    for turn in range(iterations):
        mass_K = torch.zeros_like(u_K)
        highest = torch.full((), -math.inf, dtype=dtype, device=z_MD.device)
        for z_mD in z_MD.split(step):
            if z_mD.shape[0] == 0:
                continue
            exp_mK = F.linear(z_mD, weight_KD).to(dtype)  # as the head itself multiplies, under autocast or not
            top_m = exp_mK.amax(dim=1)
            exp_mK.sub_(top_m[:, None]).mul_(1.0 / temperature).exp_()
            if turn == 0:
                above = torch.maximum(highest, top_m.amax())
                mass_K.mul_(torch.exp((highest - above) / temperature))
                highest = above
                v_m = top_m.sub_(highest).mul_(1.0 / temperature).exp_().clamp_min_(_LEAST)
            else:
                v_m = torch.mv(exp_mK, u_K).reciprocal_().clamp_(_LEAST, _MOST)
            mass_K += torch.mv(exp_mK.T, v_m)
        if turn == 0:
            # A process without rows has mass 0 and must not bring its -inf into the product.
            top = reduce_max(highest)
            mass_K.mul_(torch.exp((torch.maximum(highest, top - 80 * temperature) - top) / temperature))
        mass_K = reduce(mass_K)
        u_K = torch.div(mass_K.mean(), mass_K).clamp_(_LEAST, _MOST)
    return u_K.log_().mul_(-temperature)
