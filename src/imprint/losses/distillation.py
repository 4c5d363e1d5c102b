"""Cross entropy between a teacher's and a student's distributions over views (DINO), in one pass.

Shape suffixes: V student views, W teacher views, B images, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def cross_view_cross_entropy(
    student_VBK: Tensor | Sequence[Tensor],
    teacher_WBK: Tensor,
    center_K: Tensor,
    student_temp: float,
    teacher_temp: float,
    *,
    overwrite: bool = False,
) -> Tensor:
    r"""Return DINO's loss (arXiv 2104.14294, Eqs. 1 and 3): the mean of H(P_t(w), P_s(v)) over images and pairs v != w.

    P_t = softmax((t - c) / tau_t), P_s = softmax(s / tau_s); the first W student views are the teacher's own.

    One pass over the logits gives the loss and its gradient, since the targets of a student view enter only by their
    sum: d loss / d s_v = (n_v P_s(v) - sum_{w != v} P_t(w)) / (tau_s n B), with n pairs in all, n_v of them with v.
    No probabilities are kept; what is kept is the gradient itself, so backward can run once per forward.

    Args:
        student_VBK: student logits, or several (V_i, B, K) in order, V = sum V_i >= W (spares a concatenation).
        teacher_WBK: teacher logits; no gradient reaches them.
        center_K: centre c, (K,) or (1, K).
        student_temp: tau_s > 0.
        teacher_temp: tau_t > 0.
        overwrite: write the gradient over the student's logits, which must not be read afterwards and must not be
            leaves; saves memory of their size.

    Returns:
        0-d loss, float32 (float64 for float64 inputs); gradient reaches the student only. Logits of 1e4 stay finite in
        any floating dtype.

    Raises:
        ConfigError: for shapes that do not fit, no pair of different views, or temperatures that are not positive.
    """
    parts = (student_VBK,) if isinstance(student_VBK, Tensor) else tuple(student_VBK)
    views = sum(part.shape[0] for part in parts)
    count, batch, width = teacher_WBK.shape
    if any(part.shape[1:] != (batch, width) for part in parts) or center_K.numel() != width or views < count:
        raise ConfigError(
            f"cross_view_cross_entropy: student {[tuple(p.shape) for p in parts]}, teacher {tuple(teacher_WBK.shape)} "
            f"and centre {tuple(center_K.shape)} do not fit as (V, B, K), (W, B, K), (K,) with V >= W."
        )
    if count * views == count or batch == 0:
        raise ConfigError("cross_view_cross_entropy: one view and one target leave no pair of different views.")
    if not (0 < student_temp < math.inf and 0 < teacher_temp < math.inf):
        raise ConfigError(f"cross_view_cross_entropy: temperatures {student_temp}, {teacher_temp} must be positive.")
    if overwrite and any(part.is_leaf and part.requires_grad for part in parts):
        raise ConfigError("cross_view_cross_entropy: overwrite=True would destroy a leaf; pass a computed tensor.")
    teacher, center = teacher_WBK.detach(), center_K.detach()
    dtype = torch.float64 if parts[0].dtype == torch.float64 else torch.float32

    def targets(rows: slice) -> Tensor:
        return centred_softmax(teacher[:, rows].to(dtype), center, teacher_temp)

    return cross_entropy_to(targets, count, parts, student_temp, overwrite=overwrite)


Targets = Callable[[slice], Tensor]
"""Gives the target distributions (W, b, K) of some rows, each sums to 1, in memory of their own, in computing dtype."""


def cross_entropy_to(
    targets: Targets, count: int, parts: Sequence[Tensor], temperature: float, *, overwrite: bool = False
) -> Tensor:
    """Return the mean of H(target w, softmax(s_v / tau)) over images and pairs v != w, as `cross_view_cross_entropy`.

    Args:
        targets: distributions of rows of images, made when they are needed.
        count: W, the number of views with targets.
        parts: student logits (V_i, B, K) in order, the first W views are the targets' own; shapes are not checked.
        temperature: tau > 0.
        overwrite: see `cross_view_cross_entropy`.
    """
    with torch.autocast(parts[0].device.type, enabled=False):
        loss: Tensor = _CrossView.apply(targets, count, temperature, overwrite, *parts)
    return loss


class _CrossView(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        targets: Targets,
        count: int,
        student_temp: float,
        overwrite: bool,
        *parts: Tensor,
    ) -> Tensor:
        batch, width = parts[0].shape[1:]
        device = parts[0].device
        rows = [row for part in parts for row in part.unbind(0)]
        wanted = any(ctx.needs_input_grad[4:])
        grads = [part if overwrite else torch.empty_like(part) for part in parts] if wanted else []
        grad_rows = [row for grad in grads for row in grad.unbind(0)]
        pairs = count * (len(rows) - 1)
        factor = 1.0 / (pairs * batch * student_temp)
        # float16 cannot hold gradients this small before the loss scale is known; a power of two keeps them in range.
        stored = 2.0**12 / count if parts[0].dtype == torch.float16 else factor
        dtype = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=dtype, device=device)
        step = _rows_per_chunk(width, device)
        scratch = torch.empty(2, min(step, batch), width, dtype=dtype, device=device)
        for start in range(0, batch, step):
            chunk = slice(start, min(start + step, batch))
            target_WbK = targets(chunk).to(dtype)
            sum_bK = target_WbK.sum(dim=0)
            # Targets of the teacher's own views lack one term; afterwards all rows of targets are negative and scaled.
            own_WbK = torch.sub(sum_bK, target_WbK, out=target_WbK).mul_(-stored)
            sum_bK.mul_(-stored)
            logits, probs = (s[: chunk.stop - chunk.start] for s in scratch)
            for v, row in enumerate(rows):
                negative, terms = (own_WbK[v], count - 1) if v < count else (sum_bK, count)
                if terms == 0:
                    if wanted:
                        grad_rows[v][chunk] = 0
                    continue
                x = row[chunk]
                if x.dtype != dtype:
                    x = logits.copy_(x)
                torch.sub(x, x.amax(dim=-1, keepdim=True), out=logits).mul_(1.0 / student_temp)
                total += torch.linalg.vecdot(negative, logits).sum() / stored
                # The largest logit is exactly 0 now, so the largest probability is 1 / sum of exponentials.
                torch.softmax(logits, dim=-1, out=probs)
                total -= probs.amax(dim=-1).log_().sum() * terms
                if wanted:
                    into = grad_rows[v][chunk]
                    if into.dtype == dtype:
                        torch.add(negative, probs, alpha=terms * stored, out=into)
                    else:
                        into.copy_(torch.add(negative, probs, alpha=terms * stored, out=probs))
        ctx.grads, ctx.rest = grads, factor / stored
        return total.div_(pairs * batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "cross_view_cross_entropy keeps its gradient and hands it over once; run the forward again for a "
                "second backward."
            )
        grads, ctx.grads = ctx.grads, None
        scale = upstream * ctx.rest
        if upstream.device.type != "cpu" or scale.item() != 1.0:  # reading a value is free on the CPU only
            for grad in grads:
                grad.mul_(scale)
        return None, None, None, None, *grads


def _rows_per_chunk(width: int, device: torch.device) -> int:
    """Return the rows handled together: one row of 65,536 per thread measured best (256 KB stay in each core's L2)."""
    if device.type == "cpu":
        return max(1, torch.get_num_threads() * 65_536 // width)
    return max(1, 2**24 // width)


def centred_softmax(teacher_WBK: Tensor, center_K: Tensor, temperature: float) -> Tensor:
    """Return the teacher's distributions softmax((t - c) / tau), float32 (float64 for float64), same shape."""
    dtype = torch.float64 if teacher_WBK.dtype == torch.float64 else torch.float32
    shifted = torch.sub(teacher_WBK.to(dtype), center_K.to(dtype).flatten()).mul_(1.0 / temperature)
    return torch.softmax(shifted, dim=-1)


def entropy(probabilities: Tensor, dim: int = -1) -> Tensor:
    """Return -sum p log p in nats along `dim`, with 0 log 0 = 0; `dim` is removed. log K for uniform over K."""
    return torch.special.entr(probabilities).sum(dim=dim)


@torch.no_grad()
def teacher_entropy(teacher_WBK: Tensor, center_K: Tensor, temperature: float) -> Tensor:
    """Return the mean entropy in nats of the teacher's distributions, 0-d, in [0, log K]; streamed.

    Collapse shows here: 0 when one prototype takes all, log K when every target is uniform. DINO's loss minus this is
    the mean KL(teacher || student) over the pairs, since every teacher view has the same number of students.
    """
    count, batch, width = teacher_WBK.shape
    step = _rows_per_chunk(width, teacher_WBK.device)
    total = torch.zeros((), device=teacher_WBK.device)
    for start in range(0, batch, step):
        rows = centred_softmax(teacher_WBK[:, start : start + step], center_K, temperature)
        total = total + entropy(rows).sum()
    return total / (count * batch)


@torch.no_grad()
def teacher_statistics(
    student_VBK: Tensor | Sequence[Tensor],
    teacher_WBK: Tensor,
    center_K: Tensor,
    student_temp: float,
    teacher_temp: float,
) -> dict[str, Tensor]:
    """Return `teacher_entropy` (mean H(P_t)) and `kl` (mean KL(P_t || P_s) over pairs v != w), nats, detached 0-d.

    Arguments are those of `cross_view_cross_entropy`; a few rows of a batch are enough for a monitor.
    """
    spread = teacher_entropy(teacher_WBK, center_K, teacher_temp)
    loss = cross_view_cross_entropy(student_VBK, teacher_WBK, center_K, student_temp, teacher_temp)
    return {"teacher_entropy": spread, "kl": loss - spread}


def _same(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def ema_center(
    center_K: Tensor, teacher_WBK: Tensor, momentum: float, all_reduce: Callable[[Tensor], Tensor] = _same
) -> Tensor:
    """Return the moved centre m c + (1 - m) mean over views and images of t (arXiv 2104.14294, Eq. 4).

    Args:
        center_K: centre, (K,) or (1, K); not changed.
        teacher_WBK: teacher logits (..., K) of this process.
        momentum: m in [0, 1].
        all_reduce: averages the mean over processes.
    """
    mean_K = teacher_WBK.flatten(0, -2).mean(dim=0, dtype=center_K.dtype)
    return torch.lerp(center_K, all_reduce(mean_K).view_as(center_K), 1.0 - momentum)
