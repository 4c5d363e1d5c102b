"""EsViT's loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from case import Case, Out, arrays, tensor
from torch import Tensor

from imprint.core.progress import Epochs, Progress
from imprint.core.schedules import Schedule
from imprint.losses.distillation import cross_view_cross_entropy, ema_center
from imprint.losses.esvit import region_cross_entropy


def esvit_case(case: Case) -> Out:
    """Half the view loss and half the region loss at the epoch's teacher temperature, and both centres after it."""
    temperature = Schedule(
        start=float(case["teacher_temp"]),
        shape="constant",
        warmup=Epochs(int(case["warmup_teacher_temp_epochs"])),
        warmup_from=float(case["warmup_teacher_temp"]),
        warmup_reaches_start=True,
        per_epoch=True,
    )
    now = temperature(Progress(int(case["epoch"]), int(case["nepochs"]), 1))
    temps = float(case["student_temp"]), now
    crops, batch, momentum = int(case["ncrops"]), int(case["batch"]), float(case["center_momentum"])
    counts = [int(n) for n in case["s_npatch"]]
    s_cls, s_region = tensor(case["s_cls"], True), tensor(case["s_region"], True)
    t_cls, t_region = tensor(case["t_cls"]), tensor(case["t_region"])
    center, center_grid = tensor(case["center"]), tensor(case["center_grid"])

    def by_view(rows: Tensor) -> list[Tensor]:
        split = 2 * batch * counts[0]
        parts = [rows[:split].unflatten(0, (2, batch, counts[0]))]
        return parts + ([rows[split:].unflatten(0, (crops - 2, batch, counts[1]))] if crops > 2 else [])

    t_fea = tensor(case["t_fea"])
    view = cross_view_cross_entropy(s_cls.unflatten(0, (crops, batch)), t_cls.unflatten(0, (2, batch)), center, *temps)
    region = region_cross_entropy(
        by_view(s_region),
        by_view(tensor(case["s_fea"])),
        t_region.unflatten(0, (2, batch, -1)),
        t_fea.unflatten(0, (2, batch, -1)),
        center_grid,
        *temps,
    )
    loss = 0.5 * view + 0.5 * region
    loss.backward()
    out = {
        "out_loss": loss,
        "out_center": ema_center(center, t_cls, momentum),
        "out_center_grid": ema_center(center_grid, t_region, momentum),
        "grad_s_cls": s_cls.grad,
        "grad_s_region": s_region.grad,
    }
    return arrays(out) | {"out_teacher_temp": np.array(now)}


CASES: dict[str, Callable[[Case], Out]] = {"esvit": esvit_case}

LOSSES: dict[str, tuple[str, ...]] = {"esvit": ("s_cls", "s_region", "s_fea", "t_cls", "t_region", "t_fea")}
