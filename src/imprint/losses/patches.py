"""Cross entropy between a teacher's and a student's distributions at single patches (iBOT, DINOv2), in one pass.

Shape suffixes: R masks (crops), N patches of a crop, M patches that count (the masked ones of all crops), K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

PatchTargets = Callable[[slice], Tensor]
"""Gives the target distributions (m, K) of some rows, each sums to 1, made when they are needed."""


def patch_cross_entropy(
    student_MK: Tensor,
    targets: Tensor | PatchTargets,
    weight_M: Tensor,
    temperature: float,
    *,
    overwrite: bool = False,
) -> Tensor:
    r"""Return sum_m w_m H(T_m, softmax(s_m / tau)), the patch term of iBOT (arXiv 2111.07832, Eq. 2) and DINOv2.

    The weights carry the average that is wanted: `masked_mean_weights` gives that of both papers' public codes, the
    mean over the masked patches of a crop, then over crops (with an empty mask a crop counts with 0).

    One pass over the logits gives the loss and its gradient d loss / d s_m = w_m (softmax(s_m / tau) - T_m) / tau, a
    few rows at a time, so targets that are made when asked for (`centred_targets`) never exist as a whole. The gradient
    is kept and handed over once: backward can run once per forward.

    Args:
        student_MK: student logits of the patches that count, only these; M may be 0.
        targets: target distributions (M, K), or a function that gives those of a slice of rows. Rows sum to 1. They
            take no gradient.
        weight_M: w, >= 0; rows of weight 0 are padding.
        temperature: tau > 0.
        overwrite: write the gradient over the student's logits, which must not be read afterwards and must not be a
            leaf; saves memory of their size.

    Returns:
        0-d loss, float32 (float64 for float64 logits); gradient reaches the student only. Logits of 1e4 stay finite in
        any floating dtype.

    Raises:
        ConfigError: for shapes that do not fit, a temperature that is not positive, or an overwritten leaf.
    """
    rows = student_MK.shape[0]
    wrong_targets = isinstance(targets, Tensor) and targets.shape != student_MK.shape
    if student_MK.ndim != 2 or weight_M.shape != (rows,) or wrong_targets:
        raise ConfigError(
            f"patch_cross_entropy: student {tuple(student_MK.shape)}, targets "
            f"{tuple(targets.shape) if isinstance(targets, Tensor) else 'by rows'} and weights "
            f"{tuple(weight_M.shape)} do not fit as (M, K), (M, K), (M,)."
        )
    if not 0 < temperature < math.inf:
        raise ConfigError(f"patch_cross_entropy: temperature {temperature} must be positive.")
    if overwrite and student_MK.is_leaf and student_MK.requires_grad:
        raise ConfigError("patch_cross_entropy: overwrite=True would destroy a leaf; pass a computed tensor.")
    made = targets.detach().__getitem__ if isinstance(targets, Tensor) else targets
    with torch.autocast(student_MK.device.type, enabled=False):
        loss: Tensor = _Patches.apply(student_MK, made, weight_M.detach(), temperature, overwrite)
    return loss


def masked_mean_weights(mask_RN: Tensor, places_M: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return w_m = 1 / (R * number of masked patches of m's row): the mean over a row's masked patches, then over rows.

    With the same number of rows on every process, the mean of such losses over processes is that of the whole batch.

    Args:
        mask_RN: bool, True = masked.
        places_M: int64, the flat indices of its True entries (`Batch.places`).
        dtype: of the weights.

    Returns:
        (M,) of that dtype.
    """
    rows, patches = mask_RN.shape
    weight_R = mask_RN.sum(dim=1).clamp_min(1).to(dtype).mul(rows).reciprocal()
    return weight_R[places_M // patches]


def centred_targets(teacher_MK: Tensor, center_K: Tensor, temperature: float) -> PatchTargets:
    """Return a function that gives softmax((t - c) / tau) of a slice of rows, float32 (float64 for float64 logits).

    Args:
        teacher_MK: teacher logits, rows as the student's; no gradient reaches them.
        center_K: centre c, (K,) or (1, 1, K).
        temperature: tau > 0.
    """
    dtype = torch.float64 if teacher_MK.dtype == torch.float64 else torch.float32
    teacher_MK, center_K = teacher_MK.detach(), center_K.detach().to(dtype).flatten()

    def rows(chunk: slice) -> Tensor:
        shifted = torch.sub(teacher_MK[chunk].to(dtype), center_K).mul_(1.0 / temperature)
        return torch.softmax(shifted, dim=-1)

    return rows


class _Patches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_MK: Tensor, targets: PatchTargets, weight_M: Tensor, temperature: float, overwrite: bool
    ) -> Tensor:
        rows, width = student_MK.shape
        dtype = torch.float64 if student_MK.dtype == torch.float64 else torch.float32
        weight_M = weight_M.to(dtype)
        rest: Tensor | None = None
        stored_M1 = (weight_M / temperature)[:, None]
        if student_MK.dtype == torch.float16 and rows:
            # float16 cannot hold gradients this small before the loss scale is known; so the largest weight is stored
            # as 2^12, and its size comes back in the backward pass.
            rest = stored_M1.amax().clamp_min(torch.finfo(dtype).tiny) * 2.0**-12
            stored_M1 = stored_M1 / rest
        wanted = ctx.needs_input_grad[0]
        grad = (student_MK if overwrite else torch.empty_like(student_MK)) if wanted else None
        total = torch.zeros((), dtype=dtype, device=student_MK.device)
        step = _rows_per_chunk(width, student_MK.device)
        scratch = torch.empty(2, min(step, rows), width, dtype=dtype, device=student_MK.device)
        for start in range(0, rows, step):
            chunk = slice(start, min(start + step, rows))
            target = targets(chunk).to(dtype)
            logits, probs = (s[: chunk.stop - start] for s in scratch)
            x = student_MK[chunk]
            if x.dtype != dtype:
                x = logits.copy_(x)
            torch.sub(x, x.amax(dim=-1, keepdim=True), out=logits).mul_(1.0 / temperature)
            torch.softmax(logits, dim=-1, out=probs)
            # The largest logit is exactly 0 now, so the largest probability is 1 / sum of exponentials.
            terms = torch.linalg.vecdot(target, logits).add_(probs.amax(dim=-1).log_())
            total -= torch.dot(weight_M[chunk], terms)
            if grad is not None:
                into = grad[chunk]
                out = into if into.dtype == dtype else probs
                torch.sub(probs, target, out=out).mul_(stored_M1[chunk])
                if out is not into:
                    into.copy_(out)
        ctx.grad, ctx.rest = grad, rest
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grad is None:
            raise RuntimeError(
                "patch_cross_entropy keeps its gradient and hands it over once; run the forward again for a second "
                "backward."
            )
        grad, ctx.grad = ctx.grad, None
        scale = upstream if ctx.rest is None else upstream * ctx.rest
        if upstream.device.type != "cpu" or scale.item() != 1.0:  # reading a value is free on the CPU only
            grad.mul_(scale)
        return grad, None, None, None, None


def _rows_per_chunk(width: int, device: torch.device) -> int:
    """Return the rows handled together: about 256 KB of them per thread stay in each core's L2."""
    if device.type == "cpu":
        return max(1, torch.get_num_threads() * 65_536 // width)
    return max(1, 2**24 // width)
