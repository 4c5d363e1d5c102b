"""NT-Xent in memory linear in the batch.

Shape suffixes: B pairs of this process, A pairs of all processes, N = 2B anchors, M = 2A keys, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def nt_xent(
    z1_BD: Tensor,
    z2_BD: Tensor,
    temperature: float,
    *,
    z1_all: Tensor | None = None,
    z2_all: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Return SimCLR's normalised temperature-scaled cross entropy (arXiv 2002.05709, Eq. 1), mean over the 2B anchors.

    l(i) = -log( exp(s_ip / tau) / sum_{j != i} exp(s_ij / tau) ), s = cosine, p the other view of the same image.

    Time is that of the matrix products; no similarity matrix is kept: tiles are recomputed in the backward pass, and
    alone (no gathered keys) only the upper half of the symmetric matrix is ever formed. Arithmetic is float32 for
    float16 and bfloat16 inputs, also under autocast, and float64 for float64.

    With several processes each passes its own anchors and the keys of all: the mean of the losses over processes is the
    loss of the full batch, and the gradients that reach `z1_all` and `z2_all`, summed over processes, complete it.

    Args:
        z1_BD: first view's embeddings, any scale; row i of both views is a positive pair.
        z2_BD: second view's embeddings.
        temperature: tau > 0.
        z1_all: first views of all processes (A, D), or None for this process alone.
        z2_all: second views of all processes (A, D).
        offset: row of `z1_all` that holds this process's first row.

    Returns:
        0-d loss, float32 (float64 for float64 inputs); gradients reach anchors and keys.

    Raises:
        ConfigError: for shapes that do not fit together or a temperature that is not a positive number.
    """
    if z1_BD.ndim != 2 or z1_BD.shape != z2_BD.shape or z1_BD.shape[0] == 0:
        raise ConfigError(
            f"nt_xent: the two views must be equal non-empty (B, D) matrices, got {tuple(z1_BD.shape)} and "
            f"{tuple(z2_BD.shape)}."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"nt_xent: temperature must be a positive number, got {temperature}.")
    if (z1_all is None) != (z2_all is None):
        raise ConfigError("nt_xent: pass both z1_all and z2_all (gathered keys), or neither.")
    batch = z1_BD.shape[0]
    with torch.autocast(z1_BD.device.type, enabled=False):
        u_ND = _unit(z1_BD, z2_BD)
        bounded = 1.0 / temperature <= _EXP_SAFE[u_ND.dtype]
        if z1_all is None or z2_all is None or (z1_all is z1_BD and z2_all is z2_BD):
            if bounded:
                loss: Tensor = _SymmetricNTXent.apply(u_ND, temperature)
            else:
                loss = _GatheredNTXent.apply(u_ND, u_ND, temperature, 0, False)
            return loss
        if z1_all.shape != z2_all.shape or z1_all.ndim != 2 or z1_all.shape[1] != z1_BD.shape[1]:
            raise ConfigError(
                f"nt_xent: gathered keys must be equal (A, {z1_BD.shape[1]}) matrices, got {tuple(z1_all.shape)} and "
                f"{tuple(z2_all.shape)}."
            )
        if not 0 <= offset <= z1_all.shape[0] - batch:
            raise ConfigError(f"nt_xent: {batch} own rows at offset {offset} do not lie in {z1_all.shape[0]} keys.")
        loss = _GatheredNTXent.apply(u_ND, _unit(z1_all, z2_all), temperature, offset, bounded)
        return loss


def similarity_logits(x_BD: Tensor, y_AD: Tensor, temperature: float) -> Tensor:
    """Return cosine similarities over temperature (B, A): the logits of NT-Xent, for figures and small monitors."""
    return F.normalize(x_BD, dim=1) @ F.normalize(y_AD, dim=1).T / temperature


# Logits of unit vectors lie in [-1/tau, 1/tau]. Up to these bounds exp needs no shift by a maximum: sums over 10^9 keys
# neither overflow nor lose a row to underflow.
_EXP_SAFE = {torch.float32: 60.0, torch.float64: 600.0}


def _unit(z1_BD: Tensor, z2_BD: Tensor) -> Tensor:
    """Stack both views, first view first, as rows of length 1; a zero row stays zero and takes no gradient."""
    z_ND = torch.cat([z1_BD, z2_BD])
    if z_ND.dtype != torch.float64:
        z_ND = z_ND.float()
    length_N1 = torch.linalg.vector_norm(z_ND, dim=1, keepdim=True)
    # F.normalize would hand a dead row a gradient of 1e12.
    return z_ND * length_N1.masked_fill(length_N1 < 1e-12, math.inf).reciprocal()


def _side(rows: int, device: torch.device) -> int:
    """Return the side of a tile: 512 to 1024 measure alike on CPUs (they stay in cache); a GPU wants larger kernels."""
    if device.type == "cpu":
        return 1024 if rows >= 8192 else 512
    return 4096


class _SymmetricNTXent(torch.autograd.Function):
    """All anchors are all keys: E = exp(U U' / tau) without its diagonal is symmetric, so half of it gives all sums.

    loss = mean_i (log Z_i - s_ip / tau), Z = row sums of E;
    d loss / d U = ((E * (1/Z_i + 1/Z_j)) U - 2 U_p) / (N tau).
    """

    @staticmethod
    def forward(ctx: Any, u_ND: Tensor, temperature: float) -> Tensor:
        rows = u_ND.shape[0]
        sums_N = torch.zeros(rows, dtype=u_ND.dtype, device=u_ND.device)
        ones = torch.ones(_side(rows, u_ND.device), dtype=u_ND.dtype, device=u_ND.device)
        for i, j, tile in _upper_tiles(u_ND, temperature):
            sums_N[i].addmv_(tile, ones[: tile.shape[1]])
            if i != j:
                sums_N[j].addmv_(tile.t(), ones[: tile.shape[0]])
        half = rows // 2
        positive_B = torch.linalg.vecdot(u_ND[:half], u_ND[half:]) / temperature
        ctx.temperature = temperature
        ctx.save_for_backward(u_ND, sums_N)
        return sums_N.log().mean() - positive_B.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        u_ND, sums_N = ctx.saved_tensors
        rows = u_ND.shape[0]
        inverse_N = sums_N.reciprocal()
        grad_ND = u_ND.roll(rows // 2, 0).mul_(-2.0)
        side = _side(rows, u_ND.device)
        weights = torch.empty(min(side, rows) ** 2, dtype=u_ND.dtype, device=u_ND.device)
        for i, j, tile in _upper_tiles(u_ND, ctx.temperature):
            pair = weights[: tile.numel()].view_as(tile)
            torch.add(inverse_N[i, None], inverse_N[None, j], out=pair)
            tile.mul_(pair)
            grad_ND[i].addmm_(tile, u_ND[j])
            if i != j:
                grad_ND[j].addmm_(tile.t(), u_ND[i])
        return grad_ND.mul_(upstream / (rows * ctx.temperature)), None


def _upper_tiles(u_ND: Tensor, temperature: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows, columns, E tile) over the upper triangle; the tile's memory is reused by the next."""
    rows = u_ND.shape[0]
    side = _side(rows, u_ND.device)
    scaled_ND = u_ND / temperature
    memory = torch.empty(min(side, rows) ** 2, dtype=u_ND.dtype, device=u_ND.device)
    cuts = [slice(start, min(start + side, rows)) for start in range(0, rows, side)]
    for a, i in enumerate(cuts):
        for j in cuts[a:]:
            height, width = i.stop - i.start, j.stop - j.start
            tile = memory[: height * width].view(height, width)
            torch.mm(scaled_ND[i], u_ND[j].t(), out=tile).exp_()
            if i == j:
                tile.diagonal().zero_()
            yield i, j, tile


class _GatheredNTXent(torch.autograd.Function):
    """Own anchors against the keys of all processes; rows of both are first views, then second views.

    `bounded` leaves logits unshifted. Otherwise a streamed log-sum-exp with a running maximum is used.
    """

    @staticmethod
    def forward(ctx: Any, u_ND: Tensor, keys_MD: Tensor, temperature: float, offset: int, bounded: bool) -> Tensor:
        rows = u_ND.shape[0]
        sums_N = torch.zeros(rows, dtype=u_ND.dtype, device=u_ND.device)
        shift_N = torch.full_like(sums_N, 0.0 if bounded else -math.inf)
        for i, _, tile in _tiles(u_ND, keys_MD, temperature, offset):
            if not bounded:
                old, shift = shift_N[i], torch.maximum(shift_N[i], tile.amax(dim=1))
                finite = shift.clamp_min(torch.finfo(shift.dtype).min)  # a tile may hold nothing but the anchor itself
                sums_N[i] *= torch.exp(old - finite)
                shift_N[i] = shift
                tile.sub_(finite[:, None])
            sums_N[i] += tile.exp_().sum(dim=1)
        log_N = sums_N.log() + shift_N
        positive_ND = _partners(keys_MD, rows // 2, offset)
        positive_N = torch.linalg.vecdot(u_ND, positive_ND) / temperature
        ctx.temperature, ctx.offset, ctx.bounded = temperature, offset, bounded
        ctx.save_for_backward(u_ND, keys_MD, log_N)
        return (log_N - positive_N).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        u_ND, keys_MD, log_N = ctx.saved_tensors
        rows, offset = u_ND.shape[0], ctx.offset
        half = rows // 2
        to_anchors, to_keys = ctx.needs_input_grad[:2]
        grad_ND = torch.zeros_like(u_ND)
        grad_MD = torch.zeros_like(keys_MD) if to_keys else None
        # P_ij = exp(s_ij - log Z_i); bounded logits need no pass over the tile, 1/Z_i scales the thin matrices instead.
        inverse_N1 = torch.exp(-log_N)[:, None] if ctx.bounded else None
        weighted_ND = u_ND if inverse_N1 is None else u_ND * inverse_N1
        for i, j, tile in _tiles(u_ND, keys_MD, ctx.temperature, offset):
            if inverse_N1 is None:
                tile.sub_(log_N[i, None])
            tile.exp_()
            if to_anchors:
                grad_ND[i].addmm_(tile, keys_MD[j])
            if grad_MD is not None:
                grad_MD[j].addmm_(tile.t(), weighted_ND[i])
        scale = upstream / (rows * ctx.temperature)
        if to_anchors:
            if inverse_N1 is not None:
                grad_ND.mul_(inverse_N1)
            grad_ND.sub_(_partners(keys_MD, half, offset)).mul_(scale)
        if grad_MD is not None:
            views = grad_MD.view(2, -1, grad_MD.shape[1])[:, offset : offset + half]
            views.sub_(u_ND.view(2, half, -1).flip(0))
            grad_MD.mul_(scale)
        return (grad_ND if to_anchors else None), grad_MD, None, None, None


def _partners(keys_MD: Tensor, half: int, offset: int) -> Tensor:
    """Return the positive key of every anchor: the other view's own rows."""
    views = keys_MD.view(2, -1, keys_MD.shape[1])
    return torch.cat([views[1, offset : offset + half], views[0, offset : offset + half]])


def _tiles(u_ND: Tensor, keys_MD: Tensor, temperature: float, offset: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (anchor rows, key rows, logits), -inf where an anchor meets itself; the tile's memory is reused."""
    rows, keys = u_ND.shape[0], keys_MD.shape[0]
    half, side = rows // 2, _side(keys, u_ND.device)
    scaled_ND = u_ND / temperature
    memory = torch.empty(min(side, half) * min(side, keys), dtype=u_ND.dtype, device=u_ND.device)
    for view in range(2):
        own = view * (keys // 2) + offset - view * half  # key row of an anchor, less the anchor's row
        for start in range(view * half, (view + 1) * half, side):
            i = slice(start, min(start + side, (view + 1) * half))
            for first in range(0, keys, side):
                j = slice(first, min(first + side, keys))
                height, width = i.stop - i.start, j.stop - j.start
                tile = memory[: height * width].view(height, width)
                torch.mm(scaled_ND[i], keys_MD[j].t(), out=tile)
                diagonal = i.start + own - j.start
                if -height < diagonal < width:
                    tile.diagonal(diagonal).fill_(-math.inf)
                yield i, j, tile
