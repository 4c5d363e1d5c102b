"""iBOT's two terms on logits: class tokens of all crops, masked patches of the large ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {"ibot": ("64x12x30x8192", "64x12x60x8192")}
QUICK: dict[str, tuple[str, ...]] = {"ibot": ("8x12x30x8192",)}
RIVALS: dict[str, tuple[str, ...]] = {
    "ibot": ("imprint", "imprint overwrite", "lightly", "stable-pretraining", "official style")
}


def ibot_call(rival: str, size: str) -> Callable[[], object]:
    """Images x crops x masked patches per large crop (of 196) x prototypes; tau_s = 0.1, tau_t = 0.04 and 0.07."""
    batch, crops, masked, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    patches, rows = 196, 2 * batch
    student = torch.randn(crops, batch, width, generator=generator).mul_(0.1).requires_grad_()
    teacher = torch.randn(2, batch, width, generator=generator).mul_(0.1)
    mask = torch.zeros(rows, patches, dtype=torch.bool)
    mask[:, :masked] = True
    places = mask.flatten().nonzero().squeeze(1)
    count = patches if rival == "official style" else masked  # the public code computes every patch
    student_patch = torch.randn(rows * count, width, generator=generator).mul_(0.1).requires_grad_()
    teacher_patch = torch.randn(rows * count, width, generator=generator).mul_(0.1)
    center = torch.zeros(width)

    def clear() -> None:
        student.grad = student_patch.grad = None

    if rival.startswith("imprint"):
        from imprint.losses.ibot import ibot_loss

        overwrite = rival.endswith("overwrite")

        def call() -> None:
            clear()
            # Overwriting consumes the values; a training step computes fresh ones, so timing is not affected.
            s, p = (x.view_as(x) if overwrite else x for x in (student, student_patch))
            temps = {"student_temp": 0.1, "teacher_temp": 0.04, "patch_teacher_temp": 0.07}
            across, within = ibot_loss(
                s, teacher, center, p, teacher_patch, center, mask, places, **temps, overwrite=overwrite
            )
            (across + within).backward()
            if overwrite:
                clear()

    elif rival == "lightly":
        losses = rival_module("lightly.loss")
        cls_loss = losses.DINOLoss(output_dim=width, teacher_temp=0.04, student_temp=0.1)
        patch_loss = losses.IBOTPatchLoss(output_dim=width, teacher_temp=0.07, student_temp=0.1)
        grid = mask.view(rows, 14, 14)

        def call() -> None:
            clear()
            across = cls_loss(list(teacher.unbind()), list(student.unbind()))
            (across + patch_loss(teacher_patch, student_patch, grid)).backward()

    elif rival == "stable-pretraining":
        losses = rival_module("stable_pretraining.losses")
        cls, patch = losses.DINOv1Loss(temperature_student=0.1), losses.iBOTPatchLoss(student_temp=0.1)
        cls.center = center

        def call() -> None:
            clear()
            across = cls(student, cls.softmax_center_teacher(teacher, 0.04, update_centers=False))
            within = patch(student_patch, torch.softmax((teacher_patch - center) / 0.07, dim=-1))
            (across + within).backward()

    else:

        def call() -> None:
            clear()
            targets = F.softmax((teacher - center) / 0.04, dim=-1).unbind()
            patch_targets = F.softmax((teacher_patch - center) / 0.07, dim=-1)
            outs = (student / 0.1).unbind()
            total, terms = torch.zeros(()), 0
            for w, q in enumerate(targets):
                for v, out in enumerate(outs):
                    if v != w:
                        total = total + torch.sum(-q * F.log_softmax(out, dim=-1), dim=-1).mean()
                        terms += 1
            each = torch.sum(-patch_targets * F.log_softmax(student_patch / 0.1, dim=-1), dim=-1).view(rows, patches)
            within = (each * mask.float()).sum(-1) / mask.sum(-1).clamp(min=1.0)
            (total / terms + within.mean()).backward()

    return call


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {"ibot": ibot_call}
