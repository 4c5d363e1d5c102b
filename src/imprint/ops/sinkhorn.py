"""Balanced assignment of samples to prototypes by Sinkhorn-Knopp, in place on one matrix.

Shape suffixes: P problems of their own (the leading dimensions), B samples of this process, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from imprint.core.errors import ConfigError

Reduce = Callable[[Tensor], Tensor]

# Scalings stay within these bounds. Only where exp itself would overflow or vanish do they ever reach them; there they
# keep 0 * inf and 0 / 0 away.
_LEAST, _MOST = 1e-30, 1e30


def _same(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def sinkhorn(
    scores_BK: Tensor,
    epsilon: float,
    iterations: int,
    *,
    weight_B: Tensor | None = None,
    last: int | None = None,
    reduce: Reduce = _same,
    reduce_max: Reduce = _same,
    overwrite: bool = False,
) -> Tensor:
    r"""Return soft codes: rows sum to 1, and all prototypes get nearly the same mass over the samples of all processes.

    Q = diag(v) exp(S / epsilon) diag(u), the entropic transport of SwAV (arXiv 2006.09882, Eqs. 3-5) and DINOv2 (arXiv
    2304.07193, Sec. 4), with `iterations` rounds of

        u_k ~ 1 / sum_b v_b M_bk,    v_b = 1 / sum_k M_bk u_k,    M = exp(S / epsilon).

    The public codes rescale the whole matrix twice a round; here the scalings stay vectors, so a round is two
    matrix-vector products that read M, and the matrix is written twice in all: exp at the start, the codes at the end.
    Every row is shifted by its own maximum before exp and v starts from that shift, so scores of any size are safe (the
    public codes overflow in float32 beyond 88 epsilon); where they do not overflow the result is theirs.

    Args:
        scores_BK: similarities S of samples and prototypes, (..., B, K), one problem for each of the leading indices; B
            may be 0 and may differ between processes.
        epsilon: temperature > 0: SwAV 0.05; for DINOv2 the teacher's temperature.
        iterations: rounds, >= 0 (SwAV and DINOv2 3, SEER 10). 0 is the plain softmax(S / epsilon) of each row, without
            any balance between prototypes.
        weight_B: 1 or 0 for samples that count or not (..., B), or broadcastable to it; None counts all. The codes of
            those that do not count are computed, but move no other code.
        last: return (and form) the codes of the last so many samples only; None all.
        reduce: sums a tensor of mass per prototype over processes; called `iterations` times.
        reduce_max: takes the maximum over processes; called once, if there are iterations.
        overwrite: use the memory of `scores_BK`, which must not be read afterwards (floats of 32 or 64 bits only;
            others need a wider buffer anyway).

    Returns:
        Codes (..., last or B, K), float32 (float64 for float64 scores), without gradient.

    Raises:
        ConfigError: for an epsilon that is not positive, fewer than 0 iterations, or no (..., B, K) matrix.
    """
    if not 0 < epsilon < math.inf or iterations < 0:
        raise ConfigError(
            f"sinkhorn: epsilon {epsilon} must be positive and finite, and iterations {iterations} at least 0."
        )
    if scores_BK.ndim < 2 or scores_BK.shape[-1] == 0 or not scores_BK.is_floating_point():
        raise ConfigError(f"sinkhorn: scores must be floats (..., B, K) with K >= 1, got {tuple(scores_BK.shape)}.")
    if iterations == 0 and last is not None:
        scores_BK = scores_BK[..., scores_BK.shape[-2] - last :, :]
    shape, dtype = scores_BK.shape, torch.float64 if scores_BK.dtype == torch.float64 else torch.float32
    scores_PBK = scores_BK.detach().reshape(math.prod(shape[:-2]), *shape[-2:])
    with torch.autocast(scores_BK.device.type, enabled=False):
        own_memory = overwrite and scores_PBK.dtype == dtype and scores_PBK.is_contiguous()
        matrix_PBK = scores_PBK if own_memory else torch.empty(scores_PBK.shape, dtype=dtype, device=scores_BK.device)
        v_PB = _exponentials(scores_PBK, epsilon, matrix_PBK)
        if iterations == 0:
            return _scaled(matrix_PBK, None).view(shape)
        # v starts from the shifts, relative to the largest score of all.
        v_PB.sub_(reduce_max(_highest(v_PB))).mul_(1.0 / epsilon).exp_().clamp_min_(_LEAST)
        for i in range(iterations):
            if weight_B is not None:
                v_PB.mul_(weight_B.expand(shape[:-1]).reshape(v_PB.shape))
            mass_PK = reduce(_columns(matrix_PBK, v_PB))
            # Relative to the mean, or u and v would drift apart by B / K a round.
            u_PK = torch.div(mass_PK.mean(dim=-1, keepdim=True), mass_PK).clamp_(_LEAST, _MOST)
            if i + 1 < iterations:
                v_PB = _rows(matrix_PBK, u_PK).reciprocal_().clamp_(_LEAST, _MOST)
        codes_PBK = matrix_PBK if last is None else matrix_PBK[:, shape[-2] - last :]
        return _scaled(codes_PBK, u_PK).view(*shape[:-2], *codes_PBK.shape[1:])


def _chunks(matrix_PBK: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield problem and rows to handle together: on a CPU as many as stay in a core's cache over several operations."""
    problems, rows, width = matrix_PBK.shape
    step = max(1, torch.get_num_threads() * 2**18 // width) if matrix_PBK.device.type == "cpu" else max(1, rows)
    for problem in range(problems):
        for start in range(0, rows, step):
            yield problem, slice(start, min(start + step, rows))


def _exponentials(scores_PBK: Tensor, epsilon: float, out_PBK: Tensor) -> Tensor:
    """Write exp((S - row's largest) / epsilon) to `out_PBK`, which may be the scores; return the largest (P, B)."""
    top_PB = out_PBK.new_empty(out_PBK.shape[:-1])
    for at in _chunks(scores_PBK):
        part, out = scores_PBK[at], out_PBK[at]
        if part.dtype != out.dtype:
            part = out.copy_(part)
        torch.amax(part, dim=-1, out=top_PB[at])
        torch.sub(part, top_PB[at].unsqueeze(-1), out=out).mul_(1.0 / epsilon).exp_()
    return top_PB


def _scaled(matrix_PBK: Tensor, u_PK: Tensor | None) -> Tensor:
    """Multiply columns by u, then scale every row to sum 1, in place."""
    for at in _chunks(matrix_PBK):
        part = matrix_PBK[at]
        if u_PK is not None:
            part.mul_(u_PK[at[0]])
        part.mul_(part.sum(dim=-1, keepdim=True).reciprocal_())
    return matrix_PBK


def _highest(top_PB: Tensor) -> Tensor:
    """Return the largest score of each problem, (P, 1); -inf where this process has no sample."""
    none = top_PB.new_full((top_PB.shape[0], 1), -math.inf)
    return none if top_PB.shape[1] == 0 else top_PB.amax(dim=-1, keepdim=True)


# Matrix-vector products are taken one problem at a time: there are one or two, and batched products of a vector run
# four times slower on CPUs.
def _columns(matrix_PBK: Tensor, v_PB: Tensor) -> Tensor:
    """Return the mass of each prototype, sum_b v_b M_bk, (P, K)."""
    return torch.stack([torch.mv(m.T, v) for m, v in zip(matrix_PBK.unbind(), v_PB.unbind(), strict=True)])


def _rows(matrix_PBK: Tensor, u_PK: Tensor) -> Tensor:
    """Return the mass of each sample, sum_k M_bk u_k, (P, B)."""
    return torch.stack([torch.mv(m, u) for m, u in zip(matrix_PBK.unbind(), u_PK.unbind(), strict=True)])
