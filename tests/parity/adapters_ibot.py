"""iBOT's loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from case import Case, Out, arrays, tensor

from imprint.core.progress import Epochs, Progress
from imprint.core.schedules import Schedule
from imprint.losses.distillation import ema_center
from imprint.losses.ibot import ibot_loss


def ibot_case(case: Case) -> Out:
    """Both terms at the epoch's teacher temperatures, and both centres after it."""
    clock = Progress(int(case["epoch"]), int(case["nepochs"]), 1)
    names = ("warmup_teacher_temp", "teacher_temp"), ("warmup_teacher_patch_temp", "teacher_patch_temp")
    temp, patch_temp = (_warmed(case, *pair)(clock) for pair in names)
    student_cls, student_patch = tensor(case["student_cls"], True), tensor(case["student_patch"], True)
    local = "student_local_cls" in case and int(case["n_local"]) > 0
    student_local = tensor(case["student_local_cls"], True) if local else None
    teacher_cls, teacher_patch = tensor(case["teacher_cls"]), tensor(case["teacher_patch"])
    center, patch_center = tensor(case["center"]), tensor(case["center2"])
    views = (2, student_cls.shape[0] // 2)
    mask_RN = tensor(case["masks"]).flatten(0, 1).flatten(1)
    places = mask_RN.flatten().nonzero().squeeze(1)
    parts = [student_cls] if student_local is None else [student_cls, student_local]
    cls, patch = ibot_loss(
        [part.unflatten(0, (-1, views[1])) for part in parts],
        teacher_cls.unflatten(0, views),
        center,
        student_patch.flatten(0, 1)[places],
        teacher_patch.flatten(0, 1)[places],
        patch_center,
        mask_RN,
        places,
        student_temp=float(case["student_temp"]),
        teacher_temp=temp,
        patch_teacher_temp=patch_temp,
    )
    cls, patch = float(case["lambda1"]) * cls, float(case["lambda2"]) * patch
    loss = cls + patch
    loss.backward()
    out = {
        "out_loss": loss,
        "out_loss_cls": cls,
        "out_loss_patch": patch,
        "out_center": ema_center(center, teacher_cls, float(case["center_momentum"])),
        "out_center2": ema_center(patch_center, teacher_patch, float(case["center_momentum2"])),
        "grad_student_cls": student_cls.grad,
        "grad_student_patch": student_patch.grad,
    }
    if student_local is not None:
        out["grad_student_local_cls"] = student_local.grad
    return arrays(out) | {"out_teacher_temp": np.array(temp), "out_teacher_temp2": np.array(patch_temp)}


def _warmed(case: Case, start: str, end: str) -> Schedule:
    return Schedule(
        start=float(case[end]),
        shape="constant",
        warmup=Epochs(int(case["warmup_teacher_temp_epochs"])),
        warmup_from=float(case[start]),
        warmup_reaches_start=True,
        per_epoch=True,
    )


CASES: dict[str, Callable[[Case], Out]] = {"ibot": ibot_case}

LOSSES: dict[str, tuple[str, ...]] = {
    "ibot": ("student_cls", "student_local_cls", "student_patch", "teacher_cls", "teacher_patch")
}
