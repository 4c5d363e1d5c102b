"""DINOv2's losses and centres, and DINOv3's Gram anchoring."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Out, arrays, tensor

from imprint.losses.distillation import centred_softmax, cross_view_cross_entropy, ema_center
from imprint.losses.gram import Negatives, gram_mse
from imprint.losses.patches import centred_targets, patch_cross_entropy


def dinov2_dino_loss_case(case: Case) -> Out:
    """The class-token loss, an equal average over pairs of views; the code's parts of it are sums over their pairs."""
    views, local = 2, int(case["n_local"])
    small, large = tensor(case["student_local"], True), tensor(case["student_global"], True)
    teacher, center = tensor(case["teacher"]), tensor(case["center"])
    temps = float(case["student_temp"]), float(case["teacher_temp"])
    shape = (teacher.shape[0] // views, teacher.shape[1])
    teacher_WBK, large_VBK, small_VBK = teacher.view(views, *shape), large.view(views, *shape), small.view(-1, *shape)
    loss = cross_view_cross_entropy((large_VBK, small_VBK), teacher_WBK, center, *temps)
    loss.backward()
    crossed = cross_view_cross_entropy(large_VBK, teacher_WBK, center, *temps)  # the mean of its two pairs
    pairs = views * local + views
    return arrays(
        {
            "out_loss": loss,
            "out_raw_global": crossed,
            "out_dino_global": crossed * views / pairs,
            "out_raw_local": loss * pairs - crossed * views,
            "out_dino_local": loss - crossed * views / pairs,
            "out_teacher_probs_swapped": centred_softmax(teacher_WBK, center, temps[1]).flip(0),
            "out_center_after": ema_center(center, teacher_WBK, float(case["center_momentum"])),
            "grad_student_local": small.grad,
            "grad_student_global": large.grad,
        }
    )


def dinov2_ibot_loss_case(case: Case) -> Out:
    """The patch loss over masked patches, then over crops; rows of the student beyond them are padding."""
    student, teacher, center = (
        tensor(case["student_tokens"], True),
        tensor(case["teacher_tokens"]),
        tensor(case["center"]),
    )
    teacher_temp, masked = float(case["teacher_temp"]), int(case["n_masked"])
    weight_M = tensor(case["masks_weight"])[:masked] / case["masks"].shape[0]
    teacher_MK = teacher[:masked]
    targets = centred_targets(teacher_MK, center, teacher_temp)
    loss = patch_cross_entropy(student[:masked], targets, weight_M, float(case["student_temp"]))
    loss.backward()
    return arrays(
        {
            "out_loss": loss,
            "out_teacher_probs": targets(slice(0, masked)),
            "out_center_after": ema_center(center, teacher_MK, float(case["center_momentum"])),
            "grad_student_tokens": student.grad,
        }
    )


def dinov3_gram_case(case: Case) -> Out:
    """The Gram loss per image, and over all patches of the batch."""
    student, teacher = tensor(case["output_feats"], True), tensor(case["target_feats"])
    negatives: Negatives = (
        "drop" if bool(case["remove_neg"]) else "drop_teacher" if bool(case["remove_only_teacher_neg"]) else "keep"
    )
    loss = gram_mse(student, teacher, negatives=negatives)
    loss.backward()
    whole = gram_mse(student.detach(), teacher, level="batch", negatives=negatives)
    return arrays({"out_loss": loss, "out_loss_batch_level": whole, "grad_output_feats": student.grad})


CASES: dict[str, Callable[[Case], Out]] = {
    "dinov2_dino_loss": dinov2_dino_loss_case,
    "dinov2_ibot_loss": dinov2_ibot_loss_case,
    "dinov3_gram": dinov3_gram_case,
}

LOSSES: dict[str, tuple[str, ...]] = {
    "dinov2_dino_loss": ("student_local", "student_global", "teacher"),
    "dinov2_ibot_loss": ("student_tokens", "teacher_tokens"),
    "dinov3_gram": ("output_feats", "target_feats"),
}
