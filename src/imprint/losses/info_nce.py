"""InfoNCE against a queue of old keys (MoCo v1, v2) and against the keys of the batch (MoCo v3, NNCLR), streamed.

No matrix of similarities is ever whole in memory. One pass over the keys gives the loss and the queries' gradient
(a running sum of exponentials and of keys weighted by them); only keys that want a gradient cost a second pass.

Shape suffixes: B queries of this process, A keys of all processes, K keys of a queue, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def info_nce_queue(
    q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, temperature: float, *, filled: int | Tensor | None = None
) -> Tensor:
    r"""Return MoCo's loss (arXiv 1911.05722, Eq. 1), mean over the B queries.

    l(i) = -log( exp(q_i k_i / tau) / (exp(q_i k_i / tau) + sum_{j < filled} exp(q_i queue_j / tau)) )

    with all vectors of length 1. Gradient reaches the queries only; neither keys nor queue take one (Sec. 3.2). The
    queue is read in the forward pass alone, so it may be overwritten before backward. An empty queue (`filled` 0)
    leaves the positive alone: loss 0 and gradient 0.

    Args:
        q_BD: queries, any scale.
        k_BD: positive keys, any scale; row i is of the same image.
        queue_KD: negative keys, any scale.
        temperature: tau > 0.
        filled: only the first `filled` keys of the queue count; a tensor stays on its device. None counts all.

    Returns:
        0-d loss, float32 (float64 for float64 queries).

    Raises:
        ConfigError: for shapes that do not fit together or a temperature that is not a positive number.
    """
    _check("info_nce_queue", q_BD, k_BD, temperature)
    if queue_KD.ndim != 2 or queue_KD.shape[1] != q_BD.shape[1]:
        raise ConfigError(f"info_nce_queue: the queue must be (K, {q_BD.shape[1]}), got {tuple(queue_KD.shape)}.")
    if isinstance(filled, int):
        if not 0 <= filled <= queue_KD.shape[0]:
            raise ConfigError(f"info_nce_queue: filled={filled} is outside a queue of {queue_KD.shape[0]} keys.")
        queue_KD, filled = queue_KD[:filled], None
    with torch.autocast(q_BD.device.type, enabled=False):
        u_BD = _unit(q_BD)
        positive_BD = _unit(k_BD.detach().to(u_BD.dtype))
        loss: Tensor = _InfoNCE.apply(u_BD, queue_KD.detach(), positive_BD, temperature, 0, filled)
    return loss


def info_nce(q_BD: Tensor, k_BD: Tensor, temperature: float, *, k_all: Tensor | None = None, offset: int = 0) -> Tensor:
    r"""Return InfoNCE against the keys of the batch: cross entropy of cosines over temperature, mean over B queries.

    l(i) = -log( exp(q_i k_i / tau) / sum_a exp(q_i k_a / tau) )  (MoCo v3, arXiv 2104.02057, Eq. 1; NNCLR,
    arXiv 2104.14548, Eq. 3). Memory is linear in the batch. Keys take a gradient where they want one; detach them for
    MoCo v3.

    With several processes each passes its own queries and the keys of all: the mean of the losses over processes is
    the loss of the full batch, and the gradients that reach `k_all`, summed over processes, complete it.

    Args:
        q_BD: queries, any scale.
        k_BD: keys of this process, any scale; row i is the positive of query i.
        temperature: tau > 0.
        k_all: keys of all processes (A, D), of which rows offset .. offset + B are `k_BD`; None for this process alone.
        offset: row of `k_all` that holds this process's first key.

    Returns:
        0-d loss, float32 (float64 for float64 queries).

    Raises:
        ConfigError: for shapes that do not fit together or a temperature that is not a positive number.
    """
    _check("info_nce", q_BD, k_BD, temperature)
    keys = k_BD if k_all is None else k_all
    if keys.ndim != 2 or keys.shape[1] != q_BD.shape[1]:
        raise ConfigError(f"info_nce: gathered keys must be (A, {q_BD.shape[1]}), got {tuple(keys.shape)}.")
    if not 0 <= offset <= keys.shape[0] - q_BD.shape[0]:
        raise ConfigError(f"info_nce: {q_BD.shape[0]} keys at offset {offset} do not lie in {keys.shape[0]} keys.")
    with torch.autocast(q_BD.device.type, enabled=False):
        u_BD = _unit(q_BD)
        loss: Tensor = _InfoNCE.apply(u_BD, _unit(keys.to(u_BD.dtype)), None, temperature, offset, None)
    return loss


def mocov3_loss(
    q1_BD: Tensor,
    q2_BD: Tensor,
    k1_BD: Tensor,
    k2_BD: Tensor,
    temperature: float,
    *,
    k1_all: Tensor | None = None,
    k2_all: Tensor | None = None,
    offset: int = 0,
    scale: bool = True,
) -> Tensor:
    """Return MoCo v3's symmetrised loss 2 tau (InfoNCE(q1, k2) + InfoNCE(q2, k1)) (arXiv 2104.02057, Alg. 1).

    The factor 2 tau keeps the gradient's size when tau changes; `scale=False` leaves it out. The sum of both directions
    is not halved. Keys take no gradient. Arguments otherwise as in `info_nce`.
    """
    one = info_nce(q1_BD, k2_BD.detach(), temperature, k_all=None if k2_all is None else k2_all.detach(), offset=offset)
    two = info_nce(q2_BD, k1_BD.detach(), temperature, k_all=None if k1_all is None else k1_all.detach(), offset=offset)
    return (one + two) * (2.0 * temperature if scale else 1.0)


def queue_logits(q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Return MoCo's logits (B, 1 + K), the positive in column 0: for figures and small monitors, never for training."""
    u_BD = _unit(q_BD)
    k_BD, queue_KD = _unit(k_BD.to(u_BD.dtype)), _unit(queue_KD.to(u_BD.dtype))
    return torch.cat([torch.linalg.vecdot(u_BD, k_BD)[:, None], u_BD @ queue_KD.t()], dim=1) / temperature


@torch.no_grad()
def contrast_accuracy(q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, filled: int | Tensor) -> Tensor:
    """Return the share of queries whose positive is nearer than every key that counts, 0-d in [0, 1].

    Holds B x K cosines: pass a few rows.
    """
    logits = queue_logits(q_BD, k_BD, queue_KD, 1.0)
    empty_K = torch.arange(queue_KD.shape[0], device=q_BD.device) >= filled
    hardest_B = logits[:, 1:].masked_fill(empty_K, -math.inf).amax(dim=1)
    return (logits[:, 0] > hardest_B).to(logits.dtype).mean()


# Logits of unit vectors lie in [-1/tau, 1/tau]. Up to these bounds exp needs no shift by a maximum: sums over 10^9 keys
# neither overflow nor lose a row to underflow.
_EXP_SAFE = {torch.float32: 60.0, torch.float64: 600.0}


def _check(name: str, q_BD: Tensor, k_BD: Tensor, temperature: float) -> None:
    if q_BD.ndim != 2 or q_BD.shape != k_BD.shape or q_BD.shape[0] == 0:
        raise ConfigError(
            f"{name}: queries and keys must be equal non-empty (B, D) matrices, got {tuple(q_BD.shape)} and "
            f"{tuple(k_BD.shape)}."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"{name}: temperature must be a positive number, got {temperature}.")


def _inverse_length(x_BD: Tensor) -> Tensor:
    """Return 1 / ||x|| per row, (B, 1); 0 for a zero row, which thus stays zero and takes no gradient."""
    length_B1 = torch.linalg.vector_norm(x_BD, dim=1, keepdim=True)
    return length_B1.masked_fill(length_B1 < 1e-12, math.inf).reciprocal()


def _unit(x_BD: Tensor) -> Tensor:
    """Return rows of length 1 in float32 (float64 for float64)."""
    if x_BD.dtype != torch.float64:
        x_BD = x_BD.float()
    return x_BD * _inverse_length(x_BD)


def _sides(device: torch.device) -> tuple[int, int]:
    """Return rows and columns of a tile: a megabyte on CPUs, so that it stays in cache; a GPU wants larger kernels."""
    return (256, 1024) if device.type == "cpu" else (2048, 8192)


class _InfoNCE(torch.autograd.Function):
    """Cross entropy of unit queries against a table of keys, with an own column for the positive or without.

    `positive_BD` given: it is one more key, and the table (any scale) takes no gradient. None: the positive of query i
    is row offset + i of the table, which is of unit rows and may want a gradient.

    d loss / d u_i = (sum_a P_ia k_a - k_i+) / (tau B), accumulated while the exponentials are at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u_BD: Tensor,
        keys_AD: Tensor,
        positive_BD: Tensor | None,
        temperature: float,
        offset: int,
        filled: Tensor | None,
    ) -> Tensor:
        rows, width = u_BD.shape
        apart = positive_BD is not None
        positives_BD = keys_AD[offset : offset + rows] if positive_BD is None else positive_BD
        positive_B = torch.linalg.vecdot(u_BD, positives_BD) / temperature
        to_queries, to_keys = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        bounded = 1.0 / temperature <= _EXP_SAFE[u_BD.dtype]
        # An own positive opens the sums: exp(s+ - shift), with shift s+ where logits are not bounded.
        shift_B = torch.zeros_like(positive_B) if bounded else positive_B.clone()
        sums_B = torch.exp(positive_B - shift_B) if apart else torch.zeros_like(positive_B)
        mixed_BD = sums_B[:, None] * positives_BD if to_queries else u_BD.new_zeros(0, width)
        scaled_BD = u_BD / temperature
        for i, _, tile, keys, weight in _tiles(scaled_BD, keys_AD, filled, unit=not apart):
            if not bounded:
                if filled is not None:
                    tile.masked_fill_(weight == 0, -math.inf)
                raised = torch.maximum(shift_B[i], tile.amax(dim=1))
                fade = torch.exp(shift_B[i] - raised)
                sums_B[i] *= fade
                if to_queries:
                    mixed_BD[i] *= fade[:, None]
                shift_B[i] = raised
                tile.sub_(raised[:, None])
            tile.exp_()
            sums_B[i].addmv_(tile, weight)
            if to_queries:
                mixed_BD[i].addmm_(tile, keys)  # keys that do not count are zero rows here
        log_B = sums_B.log() + shift_B
        grad_BD = None
        if to_queries:
            grad_BD = mixed_BD.div_(sums_B[:, None]).sub_(positives_BD).div_(rows * temperature)
        ctx.temperature, ctx.offset = temperature, offset
        ctx.save_for_backward(grad_BD, *((u_BD, keys_AD, log_B) if to_keys else (None, None, None)))
        return (log_B - positive_B).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD, u_BD, keys_AD, log_B = ctx.saved_tensors
        grad_AD = None
        if u_BD is not None:
            rows = u_BD.shape[0]
            grad_AD = torch.zeros_like(keys_AD)
            for i, j, tile, _, _ in _tiles(u_BD / ctx.temperature, keys_AD, None, unit=True):
                grad_AD[j].addmm_(tile.sub_(log_B[i, None]).exp_().t(), u_BD[i])
            grad_AD[ctx.offset : ctx.offset + rows].sub_(u_BD)
            grad_AD.mul_(upstream / (rows * ctx.temperature))
        return (None if grad_BD is None else grad_BD * upstream), grad_AD, None, None, None, None


def _tiles(
    scaled_BD: Tensor, keys_AD: Tensor, filled: Tensor | None, *, unit: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Yield (query rows, key rows, logits, keys at unit length, 1 for keys that count); the tile's memory is reused."""
    rows, count = scaled_BD.shape[0], keys_AD.shape[0]
    height, width = _sides(scaled_BD.device)
    memory = scaled_BD.new_empty(min(height, rows) * min(width, count))
    ones = scaled_BD.new_ones(min(width, count))
    for first in range(0, count, width):
        j = slice(first, min(first + width, count))
        keys, weight = keys_AD[j].to(scaled_BD.dtype), ones[: j.stop - j.start]
        if filled is not None:
            weight = (torch.arange(j.start, j.stop, device=keys.device) < filled).to(keys.dtype)
        if not unit:
            keys = keys * (_inverse_length(keys) * weight[:, None])
        for start in range(0, rows, height):
            i = slice(start, min(start + height, rows))
            tile = memory[: (i.stop - i.start) * (j.stop - j.start)].view(i.stop - i.start, j.stop - j.start)
            torch.mm(scaled_BD[i], keys.t(), out=tile)
            yield i, j, tile, keys, weight
