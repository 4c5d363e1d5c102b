"""How the cases of teachers with class logits call Imprint (DeiT's hard and soft distillation, Hinton's)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case, Out, arrays, tensor
from torch import Tensor

from imprint.losses.soft_targets import distillation_kl, hard_distillation, with_labels


def distillation(case: Case) -> Out:
    """DeiT's public code divides its soft loss by B C, Hinton's formula by B."""
    alpha, temperature = float(case["alpha"]), float(case["temperature"])
    cls, dist = tensor(case["cls_logits"], True), tensor(case["dist_logits"], True)
    teacher, labels = tensor(case["teacher_logits"]), tensor(case["labels"])
    soft = with_labels(cls, labels, distillation_kl(dist, teacher, temperature, mean_over="elements"), alpha)
    hard = with_labels(cls, labels, hard_distillation(dist, teacher), alpha)
    hinton = distillation_kl(dist, teacher, temperature)
    total = with_labels(cls, labels, hinton, alpha)
    grad_cls, grad_dist = torch.autograd.grad(soft, (cls, dist), retain_graph=True)
    return arrays(
        {
            "out_loss": soft,
            "out_loss_hard": hard,
            "out_hinton_kl": hinton,
            "out_hinton_total": total,
            "grad_cls_logits": grad_cls,
            "grad_dist_logits": grad_dist,
            "grad_hinton_dist": _gradient(hinton, dist),
            "grad_hard_dist": _gradient(hard, dist),
        }
    )


def _gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    return gradient


CASES: dict[str, Callable[[Case], Out]] = {"distillation": distillation}
LOSSES: dict[str, tuple[str, ...]] = {"distillation": ("cls_logits", "dist_logits", "teacher_logits")}
