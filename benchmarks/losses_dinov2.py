"""The patch loss of iBOT and DINOv2, and Gram anchoring, against their rivals; tables as in `losses.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {
    "ibot_patch": ("64x60x8192", "64x60x65536"),
    "dinov2_patch": ("64x60x8192",),
    "gram": ("64x196x384", "16x1024x384"),
}
QUICK: dict[str, tuple[str, ...]] = {
    "ibot_patch": ("64x60x1024",),
    "dinov2_patch": ("64x60x1024",),
    "gram": ("8x196x384",),
}
RIVALS: dict[str, tuple[str, ...]] = {
    "ibot_patch": ("imprint", "imprint overwrite", "lightly", "official style"),
    "dinov2_patch": ("imprint", "imprint overwrite", "stable-pretraining"),
    "gram": ("imprint", "official style"),
}
TEMPS = 0.1, 0.04


def patch_call(rival: str, size: str, sinkhorn: bool) -> Callable[[], object]:
    """Crops x masked patches of each x prototypes, the same number of patches in every crop."""
    crops, masked, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(crops * masked, width, generator=generator).mul_(0.1).requires_grad_()
    teacher = torch.randn(crops * masked, width, generator=generator).mul_(0.1)
    center = torch.zeros(1, width)
    mask = torch.zeros(crops, 2 * masked, dtype=torch.bool)
    mask[:, :masked] = True
    student_temp, teacher_temp = TEMPS

    if rival.startswith("imprint"):
        from imprint.losses import patches
        from imprint.ops import sinkhorn as balance

        overwrite = rival.endswith("overwrite")
        places = mask.flatten().nonzero().squeeze(1)

        def call() -> None:
            student.grad = None
            weight = patches.masked_mean_weights(mask, places)
            # Overwriting consumes the values; a training step computes fresh ones, so timing is not affected.
            logits = student.view_as(student) if overwrite else student
            targets = (
                balance.sinkhorn(teacher, teacher_temp, 3)
                if sinkhorn
                else patches.centred_targets(teacher, center, teacher_temp)
            )
            patches.patch_cross_entropy(logits, targets, weight, student_temp, overwrite=overwrite).backward()
            if overwrite:
                student.grad = None

    elif rival == "lightly":
        lightly = rival_module("lightly.loss").IBOTPatchLoss(
            width, teacher_temp=teacher_temp, student_temp=student_temp
        )
        grid = mask.unflatten(1, (2, masked))

        def call() -> None:
            student.grad = None
            lightly(teacher, student, grid).backward()

    elif rival == "stable-pretraining":
        stable = rival_module("stable_pretraining.losses").iBOTPatchLoss(student_temp=student_temp)

        def call() -> None:
            student.grad = None
            targets = stable.sinkhorn_knopp_teacher(teacher, teacher_temp, num_samples=len(teacher))
            stable(student, targets).backward()

    else:
        weight = torch.full((crops * masked,), 1.0 / (crops * masked))

        def call() -> None:
            student.grad = None
            targets = F.softmax((teacher - center) / teacher_temp, dim=-1)
            terms = torch.sum(targets * F.log_softmax(student / student_temp, dim=-1), dim=-1)
            (-(terms * weight).sum()).backward()

    return call


def ibot_patch_call(rival: str, size: str) -> Callable[[], object]:
    """Centred targets."""
    return patch_call(rival, size, sinkhorn=False)


def dinov2_patch_call(rival: str, size: str) -> Callable[[], object]:
    """Targets balanced by Sinkhorn-Knopp."""
    return patch_call(rival, size, sinkhorn=True)


def gram_call(rival: str, size: str) -> Callable[[], object]:
    """Images x patches x width, compared per image."""
    images, patches, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(images, patches, width, generator=generator).requires_grad_()
    teacher = torch.randn(images, patches, width, generator=generator)
    if rival == "imprint":
        from imprint.losses.gram import gram_mse

        def call() -> None:
            student.grad = None
            gram_mse(student, teacher).backward()

    else:

        def call() -> None:
            student.grad = None
            x, y = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
            F.mse_loss(x @ x.mT, y @ y.mT).backward()

    return call


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "ibot_patch": ibot_patch_call,
    "dinov2_patch": dinov2_patch_call,
    "gram": gram_call,
}
