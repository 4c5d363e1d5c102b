"""Teachers that follow a student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Return a deep copy whose parameters take no gradient, without dropout or stochastic depth: an EMA teacher.

    It stays in train mode, so its BatchNorm uses (and keeps) its own batch statistics.
    """
    twin = copy.deepcopy(module)
    twin.requires_grad_(False)
    for part in twin.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "drop_prob", None), float):  # timm's DropPath
            setattr(part, "drop_prob", 0.0)  # noqa: B010  (no type knows the attribute)
    return twin


@torch.no_grad()
def ema_update_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters: theta_t <- m theta_t + (1 - m) theta_s, in one foreach call per dtype and device.

    Parameters only: buffers (BatchNorm statistics) stay the teacher's own, as in public code (BYOL, MoCo, DINO).

    Args:
        teacher: module of the same structure as `student`.
        student: the module that is trained.
        momentum: m in [0, 1]; 1 keeps the teacher, 0 copies the student.
    """
    targets: list[Tensor] = list(teacher.parameters())
    sources: list[Tensor] = list(student.parameters())
    if len(targets) != len(sources):
        raise ValueError(f"teacher has {len(targets)} parameters, student {len(sources)}")
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)
