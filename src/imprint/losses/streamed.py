"""Prototype layer and cross entropy in one, a part of the rows at a time: no logits of the whole batch ever exist.

The losses of `imprint.losses.distillation` and `imprint.losses.patches`, taken from the vectors before the prototypes.
With K up to 131,072 the logits are the largest tensors of a step; here a part of them is made, turned into its
gradient, multiplied into the gradients of vectors and prototypes, and forgotten. Memory is O(part x K + M x D + K x D),
and each product of the ordinary forward and backward pass is computed once: nothing is recomputed.

Shape suffixes: M rows, D width, K prototypes, V student views, W teacher views, B images; lower case: a part of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError
from imprint.losses.distillation import centred_softmax, cross_entropy_to
from imprint.losses.patches import PatchTargets, centred_targets, patch_cross_entropy

StreamedTargets = Callable[[slice], Tensor | PatchTargets]
"""Gives the target distributions (m, K) of a part of the rows, or a function that gives those of its own slices."""


def streamed_cross_entropy(
    z_MD: Tensor,
    weight_KD: Tensor,
    targets: StreamedTargets,
    weight_M: Tensor,
    temperature: float,
    *,
    rows: int | None = None,
) -> Tensor:
    r"""Return sum_m w_m H(T_m, softmax(z_m W^T / tau)): `patch_cross_entropy` of the logits z W^T, which never exist.

    The patch term of iBOT (arXiv 2111.07832, Eq. 2) and DINOv2 with its prototype layer. With G the gradient by the
    logits of a part of the rows, d loss / d z = G W and d loss / d W = sum over parts of G^T z; both are found with
    the loss and handed over once, so backward can run once per forward.

    Args:
        z_MD: vectors before the prototypes, only those that count; M may be 0.
        weight_KD: the prototypes as they are multiplied (`Prototypes.normalised`).
        targets: for a slice of rows their distributions; see `streamed_targets`. They take no gradient.
        weight_M: w, >= 0, with the average that is wanted (`masked_mean_weights`).
        temperature: tau > 0.
        rows: rows of a part; None chooses.

    Returns:
        0-d loss, float32 (float64 for float64 vectors). Gradients reach `z_MD` and `weight_KD`, in their dtypes. Under
        autocast to bfloat16 the products are taken in it, as those of a linear layer would be (float16, which cannot
        hold the gradients by the logits, gives way to float32); all else is computed in float32.

    Raises:
        ConfigError: for shapes that do not fit, or a temperature that is not positive.
    """
    if z_MD.ndim != 2 or weight_KD.ndim != 2 or z_MD.shape[1] != weight_KD.shape[1] or weight_M.shape != z_MD.shape[:1]:
        raise ConfigError(
            f"streamed_cross_entropy: vectors {tuple(z_MD.shape)}, prototypes {tuple(weight_KD.shape)} and weights "
            f"{tuple(weight_M.shape)} do not fit as (M, D), (K, D), (M,)."
        )
    _check_temperatures("streamed_cross_entropy", temperature)
    z, weight = _in_product_dtype(z_MD, weight_KD)

    def part(logits_mK: Tensor, at: slice) -> Tensor:
        made = targets(at)
        rest = weight_M[at].to(logits_mK.device)
        return patch_cross_entropy(logits_mK, made, rest, temperature, overwrite=True)

    return streamed_sum(z, weight, part, rows or rows_per_part(weight.shape[0], z.device))


def streamed_targets(
    teacher_z_MD: Tensor, teacher_weight_KD: Tensor, center_K: Tensor, temperature: float
) -> StreamedTargets:
    """Return the teacher's distributions softmax((z W^T - c) / tau), made for a part of the rows at a time.

    Args:
        teacher_z_MD: vectors before the teacher's prototypes; no gradient reaches them.
        teacher_weight_KD: its prototypes.
        center_K: centre c, (K,) or (1, 1, K).
        temperature: tau > 0.
    """
    _check_temperatures("streamed_targets", temperature)
    z, weight = _in_product_dtype(teacher_z_MD.detach(), teacher_weight_KD.detach())
    center_K = center_K.detach()

    def part(rows: slice) -> PatchTargets:
        return centred_targets(_product(z[rows], weight), center_K, temperature)

    return part


def streamed_cross_view(
    student_z_VBD: Tensor | Sequence[Tensor],
    student_weight_KD: Tensor,
    teacher_z_WBD: Tensor,
    teacher_weight_KD: Tensor,
    center_K: Tensor,
    student_temp: float,
    teacher_temp: float,
    *,
    images: int | None = None,
) -> Tensor:
    r"""Return DINO's loss (arXiv 2104.14294, Eqs. 1 and 3): `cross_view_cross_entropy` of the logits z W^T.

    Args:
        student_z_VBD: the student's vectors before the prototypes, or several (V_i, B, D) in order, V = sum V_i >= W;
            the first W views are the teacher's own.
        student_weight_KD: the student's prototypes as they are multiplied (`Prototypes.normalised`).
        teacher_z_WBD: the teacher's vectors; no gradient reaches them.
        teacher_weight_KD: the teacher's prototypes.
        center_K: centre c, (K,) or (1, K).
        student_temp: tau_s > 0.
        teacher_temp: tau_t > 0.
        images: images of a part; None chooses.

    Returns:
        0-d loss, see `streamed_cross_entropy`.

    Raises:
        ConfigError: for shapes that do not fit, no pair of different views, or temperatures that are not positive.
    """
    z_VBD = student_z_VBD if isinstance(student_z_VBD, Tensor) else torch.cat(tuple(student_z_VBD))
    count, batch = teacher_z_WBD.shape[:2]
    views, (width, dim) = z_VBD.shape[0], student_weight_KD.shape
    fits = (
        z_VBD.ndim == teacher_z_WBD.ndim == 3
        and z_VBD.shape[1:] == (batch, dim)
        and teacher_z_WBD.shape[2] == teacher_weight_KD.shape[1]
        and teacher_weight_KD.shape[0] == center_K.numel() == width
    )
    if not fits or views < count:
        raise ConfigError(
            f"streamed_cross_view: student {tuple(z_VBD.shape)} with prototypes {tuple(student_weight_KD.shape)}, "
            f"teacher {tuple(teacher_z_WBD.shape)} with {tuple(teacher_weight_KD.shape)} and centre "
            f"{tuple(center_K.shape)} do not fit as (V, B, D), (K, D), (W, B, D), (K, D), (K,) with V >= W."
        )
    if count * views == count or batch == 0:
        raise ConfigError("streamed_cross_view: one view and one target leave no pair of different views.")
    _check_temperatures("streamed_cross_view", student_temp, teacher_temp)
    z, weight = _in_product_dtype(z_VBD, student_weight_KD)
    teacher_z, teacher_weight = _in_product_dtype(teacher_z_WBD.detach(), teacher_weight_KD.detach())
    center_K = center_K.detach()
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32

    def part(logits_mK: Tensor, at: slice) -> Tensor:
        first, last = at.start // views, at.stop // views
        logits_VbK = logits_mK.unflatten(0, (last - first, views)).transpose(0, 1)
        teacher_WbK = _product(teacher_z[:, first:last].flatten(0, 1), teacher_weight).unflatten(0, (count, -1))

        def targets(rows: slice) -> Tensor:
            return centred_softmax(teacher_WbK[:, rows].to(dtype), center_K, teacher_temp)

        loss = cross_entropy_to(targets, count, (logits_VbK,), student_temp, overwrite=True)
        return loss * ((last - first) / batch)

    step = images or max(1, rows_per_part(width, z.device) // views)
    return streamed_sum(z.transpose(0, 1).flatten(0, 1), weight, part, step * views)


@torch.no_grad()
def mean_logits(z: Tensor, weight_KD: Tensor) -> Tensor:
    """Return the mean over all rows of the logits z W^T, (1, K), from the mean of z: what a centre is moved by.

    Args:
        z: vectors (..., D).
        weight_KD: prototypes.
    """
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    with torch.autocast(z.device.type, enabled=False):
        return _product(z.flatten(0, -2).to(dtype).mean(dim=0, keepdim=True), weight_KD.to(dtype))


Part = Callable[[Tensor, slice], Tensor]
"""Gives the loss of logits (m, K), the rows of a slice; it may write over them."""


def streamed_sum(z_MD: Tensor, weight_KD: Tensor, part: Part, rows: int) -> Tensor:
    """Return the sum of `part(logits, rows)` over parts of z W^T; gradients reach both factors, of one dtype.

    Args:
        z_MD: vectors.
        weight_KD: prototypes.
        part: the loss of some rows; its gradient by the logits is asked for at once, so they may be overwritten.
        rows: rows of a part.
    """
    with torch.autocast(z_MD.device.type, enabled=False):
        loss: Tensor = _Streamed.apply(z_MD, weight_KD, part, rows)
    return loss


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MD: Tensor, weight_KD: Tensor, part: Part, step: int) -> Tensor:
        rows, width = z_MD.shape[0], weight_KD.shape[0]
        dtype = torch.float64 if z_MD.dtype == torch.float64 else torch.float32
        grad_z = torch.empty_like(z_MD) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_KD, dtype=dtype) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=dtype, device=z_MD.device)
        memory = torch.empty(min(step, rows), width, dtype=z_MD.dtype, device=z_MD.device)
        for start in range(0, rows, step):
            at = slice(start, min(start + step, rows))
            z_mD = z_MD[at]
            logits_mK = torch.mm(z_mD, weight_KD.T, out=memory[: at.stop - start])
            if grad_z is None and grad_weight is None:
                total += part(logits_mK, at)
                continue
            with torch.enable_grad():  # the part's loss gives its own gradient, over the logits
                leaf = logits_mK.detach().requires_grad_()
                loss = part(leaf.view_as(leaf), at)
                (grad_mK,) = torch.autograd.grad(loss, leaf)
            total += loss.detach()
            if grad_z is not None:
                torch.mm(grad_mK, weight_KD, out=grad_z[at])
            if grad_weight is None:
                continue
            if grad_weight.dtype == z_MD.dtype:
                grad_weight.addmm_(grad_mK.T, z_mD)
            else:
                grad_weight += torch.mm(grad_mK.T, z_mD)
        ctx.grads = (grad_z, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "a streamed loss keeps its gradients and hands them over once; run the forward again for a second "
                "backward."
            )
        grads, ctx.grads = ctx.grads, None
        for grad in grads:
            if grad is not None:
                grad.mul_(upstream)
        return *grads, None, None


def _check_temperatures(name: str, *temperatures: float) -> None:
    if not all(0 < t < math.inf for t in temperatures):
        raise ConfigError(f"{name}: temperatures {temperatures} must be positive.")


def _product(z_MD: Tensor, weight_KD: Tensor) -> Tensor:
    with torch.autocast(z_MD.device.type, enabled=False):
        return z_MD @ weight_KD.T


def _in_product_dtype(z: Tensor, weight_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the dtype that a linear layer would multiply them in here; float16 becomes float32."""
    dtype = torch.promote_types(z.dtype, weight_KD.dtype)
    if torch.is_autocast_enabled(z.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(z.device.type)
    if dtype == torch.float16:
        dtype = torch.float32
    return z.to(dtype), weight_KD.to(dtype)


def rows_per_part(width: int, device: torch.device) -> int:
    """Return the rows of a part: enough for products of full speed, few enough that their logits weigh little.

    Every part reads the prototypes twice and adds to their gradient; 64 rows and more hide that on a CPU, whose
    elementwise work goes by cache-sized slices of a part anyway. A GPU takes 2^26 logits (256 MB in float32).
    """
    if device.type == "cpu":
        return max(64, 2**22 // width)
    return max(64, 2**26 // width)
