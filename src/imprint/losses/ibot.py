"""iBOT's two terms: class tokens across views, masked patches within a view.

Shape suffixes: V student views, W teacher views (the student's first W are the same), B images, N patches, K
prototypes, R = W B crops in the teacher's order, M masked patches of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.distillation import cross_view_cross_entropy
from imprint.losses.patches import centred_targets, masked_mean_weights, patch_cross_entropy


def ibot_loss(
    student_VBK: Tensor | Sequence[Tensor],
    teacher_WBK: Tensor,
    center_K: Tensor,
    student_MK: Tensor,
    teacher_MK: Tensor,
    patch_center_K: Tensor,
    mask_RN: Tensor,
    places_M: Tensor,
    *,
    student_temp: float,
    teacher_temp: float,
    patch_teacher_temp: float,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Return (L_cls, L_patch) of iBOT (arXiv 2111.07832, Eqs. 2 and 3; bytedance/ibot, iBOTLoss).

    L_cls is the mean of H(P_t(w), P_s(v)) over images and pairs of views v != w, as in DINO. L_patch is the mean over
    the crops of the mean over their masked patches of H(P_t(patch), P_s(patch)), both of the same crop: the teacher saw
    it whole, the student with the masked patches replaced. A crop without masked patches counts with 0. P_t is centred
    and sharpened, each term with a centre and a temperature of its own.

    Only masked patches enter: rows of others would have weight 0.

    Args:
        student_VBK: the student's class logits, or several (V_i, B, K) in order.
        teacher_WBK: the teacher's; no gradient reaches them.
        center_K: centre of the class logits.
        student_MK: the student's logits of the masked patches, ordered as `places_M`; M may be 0.
        teacher_MK: the teacher's logits of the same patches.
        patch_center_K: centre of the patch logits.
        mask_RN: bool, True = masked; crops in the order (view, image).
        places_M: int64 flat indices of the True entries of `mask_RN`, ascending (`Batch.places`).
        student_temp: tau_s > 0 of both terms.
        teacher_temp: tau_t > 0 of the class tokens.
        patch_teacher_temp: tau_t > 0 of the patches.
        overwrite: write gradients over the student's logits; see `cross_view_cross_entropy`.

    Returns:
        Two 0-d losses, float32 (float64 for float64 inputs), not weighted. Each hands its gradient over once.

    Raises:
        ConfigError: for shapes that do not fit, or temperatures that are not positive.
    """
    if student_MK.shape != teacher_MK.shape or student_MK.shape[:1] != places_M.shape:
        raise ConfigError(
            f"ibot_loss: masked patches of the student {tuple(student_MK.shape)}, of the teacher "
            f"{tuple(teacher_MK.shape)} and places {tuple(places_M.shape)} do not fit as (M, K), (M, K), (M,)."
        )
    if not patch_teacher_temp > 0:
        raise ConfigError(f"ibot_loss: patch_teacher_temp {patch_teacher_temp} must be positive.")
    across = cross_view_cross_entropy(
        student_VBK, teacher_WBK, center_K, student_temp, teacher_temp, overwrite=overwrite
    )
    dtype = torch.float64 if student_MK.dtype == torch.float64 else torch.float32
    within = patch_cross_entropy(
        student_MK,
        centred_targets(teacher_MK, patch_center_K, patch_teacher_temp),
        masked_mean_weights(mask_RN, places_M, dtype),
        student_temp,
        overwrite=overwrite,
    )
    return across, within
