"""Distillation of a classifier: a student matches a teacher's softened distribution over classes, or its decision.

Shape suffixes: B images, C classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

UNLABELLED = -1
"""The label of an image whose class is not known."""


def soft_cross_entropy(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return T^2 times the mean over images of H(P_t, P_s), P = softmax(logits / T), in nats.

    The distillation loss of SimCLR v2 (arXiv 2006.10029, Eq. 2; the factor T^2 is the public code's, `add_kd_loss`),
    which keeps the gradient's size when T grows (Hinton et al., arXiv 1503.02531, Sec. 2):

    d loss / d s = T (P_s - P_t) / B.

    Args:
        student_BC: student logits.
        teacher_BC: teacher logits; no gradient reaches them.
        temperature: T > 0.

    Returns:
        0-d loss, float32 (float64 for float64 inputs). Logits of 1e4 stay finite in any floating dtype.

    Raises:
        ConfigError: for logits that do not fit together or a temperature that is not a positive number.
    """
    return _soft("soft_cross_entropy", student_BC, teacher_BC, temperature, False)


def distillation_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    temperature: float = 1.0,
    *,
    mean_over: Literal["images", "elements"] = "images",
) -> Tensor:
    r"""Return T^2 KL(P_t || P_s), P = softmax(logits / T): soft distillation (Hinton et al., arXiv 1503.02531, Sec. 2).

    Args:
        student_BC: student logits.
        teacher_BC: teacher logits; no gradient reaches them.
        temperature: T > 0.
        mean_over: `images` divides the sum by B; `elements` by B C, as DeiT's public code does (its loss is C times
            smaller for the same weight).

    Returns:
        0-d loss >= 0, float32 (float64 for float64 inputs).

    Raises:
        ConfigError: see `soft_cross_entropy`.
    """
    loss = _soft("distillation_kl", student_BC, teacher_BC, temperature, True)
    return loss / student_BC.shape[1] if mean_over == "elements" else loss


def hard_distillation(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Return the mean cross entropy against the teacher's decision argmax t (DeiT, arXiv 2012.12877, Eq. 3).

    Returns:
        0-d loss, float32 (float64 for float64 inputs); gradient reaches the student only.

    Raises:
        ConfigError: for logits that do not fit together.
    """
    _check("hard_distillation", student_BC, teacher_BC, 1.0)
    with torch.autocast(student_BC.device.type, enabled=False):
        return F.cross_entropy(_wide(student_BC), teacher_BC.detach().argmax(dim=1))


def with_labels(logits_BC: Tensor, labels_B: Tensor, distilled: Tensor, alpha: float) -> Tensor:
    r"""Return (1 - alpha) CE(logits, labels) + alpha distilled (arXiv 2006.10029, Eq. 3; arXiv 2012.12877, Eq. 2).

    Images of label -1 have no term in CE, and its sum is divided by all B images: as in Eq. 3 every image counts once,
    and several processes with different numbers of labels average to one.

    Args:
        logits_BC: student logits for the true class.
        labels_B: int64 classes, -1 where unknown.
        distilled: 0-d distillation loss.
        alpha: weight of the distillation in [0, 1].

    Raises:
        ConfigError: for shapes that do not fit or alpha out of range.
    """
    if logits_BC.ndim != 2 or labels_B.shape != logits_BC.shape[:1]:
        raise ConfigError(
            f"with_labels: logits {tuple(logits_BC.shape)} and labels {tuple(labels_B.shape)} are no (B, C) and (B)."
        )
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"with_labels: alpha must lie in [0, 1], got {alpha}.")
    with torch.autocast(logits_BC.device.type, enabled=False):
        total = F.cross_entropy(_wide(logits_BC), labels_B, ignore_index=UNLABELLED, reduction="sum")
        return (1.0 - alpha) * total / logits_BC.shape[0] + alpha * distilled


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(name: str, student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> None:
    if student_BC.ndim != 2 or student_BC.shape != teacher_BC.shape or student_BC.numel() == 0:
        raise ConfigError(
            f"{name}: student {tuple(student_BC.shape)} and teacher {tuple(teacher_BC.shape)} must be equal non-empty "
            "(B, C) matrices; a teacher of other classes cannot be matched."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"{name}: temperature must be a positive number, got {temperature}.")


def _soft(name: str, student_BC: Tensor, teacher_BC: Tensor, temperature: float, less_entropy: bool) -> Tensor:
    _check(name, student_BC, teacher_BC, temperature)
    with torch.autocast(student_BC.device.type, enabled=False):
        loss: Tensor = _SoftTargets.apply(student_BC, teacher_BC.detach(), temperature, less_entropy)
    return loss


class _SoftTargets(torch.autograd.Function):
    """Loss and gradient in one pass; what is kept for backward is P_s - P_t, one matrix."""

    @staticmethod
    def forward(ctx: Any, student_BC: Tensor, teacher_BC: Tensor, temperature: float, less_entropy: bool) -> Tensor:
        dtype = torch.float64 if student_BC.dtype == torch.float64 else torch.float32
        log_p_BC = torch.log_softmax(student_BC.to(dtype) / temperature, dim=1)
        log_q_BC = torch.log_softmax(teacher_BC.to(dtype) / temperature, dim=1)
        q_BC = log_q_BC.exp()
        batch = student_BC.shape[0]
        # Summed as q (log q - log p), the difference of two nearly equal entropies is never taken.
        against = log_q_BC.sub_(log_p_BC) if less_entropy else log_p_BC.neg()
        total = torch.linalg.vecdot(q_BC, against).sum()
        ctx.save_for_backward(log_p_BC.exp_().sub_(q_BC))
        ctx.factor, ctx.dtype = temperature / batch, student_BC.dtype
        return total * (temperature**2 / batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (difference_BC,) = ctx.saved_tensors
        return (difference_BC * (upstream * ctx.factor)).to(ctx.dtype), None, None, None
