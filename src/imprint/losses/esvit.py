"""EsViT's region loss: every region of the student against its best match among the teacher's.

Shape suffixes: V student views, W teacher views (the student's first W are the same), B images, T regions of a
student's view, S regions of a teacher's, D feature width, K prototypes, M = V B T rows of a resolution, J matches each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.distillation import centred_softmax
from imprint.losses.patches import PatchTargets, patch_cross_entropy


def region_cross_entropy(
    student_VBTK: Sequence[Tensor],
    student_VBTD: Sequence[Tensor],
    teacher_WBSK: Tensor,
    teacher_WBSD: Tensor,
    center_K: Tensor,
    student_temp: float,
    teacher_temp: float,
    *,
    overwrite: bool = False,
) -> Tensor:
    r"""Return EsViT's region loss L_R (arXiv 2106.09785, Eq. 3; microsoft/esvit, DDINOLoss).

    The mean over images, regions i of the student's view and pairs of views v != w of
    H(P_t(w, j*), P_s(v, i)), j* = argmax_j cos(f_s(v, i), f_t(w, j)), with P_t = softmax((t - c) / tau_t),
    P_s = softmax(s / tau_s) and f the BACKBONE's features of the regions.

    The target rows of a few student rows at a time are gathered by their index and thrown away: nothing of the size
    (pairs, regions, K) exists. Rows of a view with several matches take the mean of their targets, by which the cross
    entropy is the mean of theirs.

    Args:
        student_VBTK: student logits per resolution, (V_i, B, T_i, K) in order; the first are the teacher's W views.
        student_VBTD: backbone features of the same regions, per resolution; they only choose.
        teacher_WBSK: teacher logits; no gradient reaches them.
        teacher_WBSD: the teacher backbone's features of the same regions.
        center_K: centre c of the teacher's region logits, (K,) or (1, K).
        student_temp: tau_s > 0.
        teacher_temp: tau_t > 0.
        overwrite: write the gradient over the student's logits; see `patch_cross_entropy`.

    Returns:
        0-d loss, float32 (float64 for float64 logits); gradient reaches the student's logits only, and is handed over
        once. Logits of 1e4 stay finite in any floating dtype.

    Raises:
        ConfigError: for shapes that do not fit, no pair of different views, or temperatures that are not positive.
    """
    count, batch, regions, width = teacher_WBSK.shape
    views = sum(part.shape[0] for part in student_VBTK)
    pairs = count * (views - 1)
    fit = len(student_VBTK) == len(student_VBTD) > 0 and teacher_WBSD.shape[:3] == teacher_WBSK.shape[:3]
    for logits, features in zip(student_VBTK, student_VBTD, strict=False):
        fit &= logits.shape[1] == batch and logits.shape[-1] == width and features.shape[:3] == logits.shape[:3]
    if not fit or student_VBTK[0].shape[0] != count or center_K.numel() != width:
        raise ConfigError(
            f"region_cross_entropy: student {[tuple(p.shape) for p in student_VBTK]} with features "
            f"{[tuple(p.shape) for p in student_VBTD]} and teacher {tuple(teacher_WBSK.shape)} with "
            f"{tuple(teacher_WBSD.shape)} do not fit as (V, B, T, K), (V, B, T, D), (W, B, S, K), (W, B, S, D)."
        )
    if pairs == 0 or batch == 0:
        raise ConfigError("region_cross_entropy: one view and one target leave no pair of different views.")
    if not teacher_temp > 0:
        raise ConfigError(f"region_cross_entropy: teacher_temp {teacher_temp} must be positive.")
    rows_K = teacher_WBSK.detach().flatten(0, 2)
    total: Tensor | None = None
    for part, features in zip(student_VBTK, student_VBTD, strict=True):
        found_WVBT = match_regions(features, teacher_WBSD)
        if total is None:  # a view is not its own target
            found = [torch.cat([found_WVBT[:v, v], found_WVBT[v + 1 :, v]]) for v in range(count)]
            found_JVBT = torch.stack(found, dim=1)
        else:
            found_JVBT = found_WVBT
        weight = found_JVBT.shape[0] / (pairs * batch * part.shape[2])
        logits_MK = part.flatten(0, 2)
        dtype = torch.float64 if logits_MK.dtype == torch.float64 else torch.float32
        term = patch_cross_entropy(
            logits_MK,
            _gathered_targets(rows_K, found_JVBT.flatten(1), center_K.detach(), teacher_temp),
            torch.full(logits_MK.shape[:1], weight, dtype=dtype, device=logits_MK.device),
            student_temp,
            overwrite=overwrite,
        )
        total = term if total is None else total + term
    assert total is not None
    return total


@torch.no_grad()
def match_regions(student_VBTD: Tensor, teacher_WBSD: Tensor) -> Tensor:
    """Return for every region of a student's view the most similar one of each teacher's view of the same image.

    Args:
        student_VBTD: backbone features of the student's regions, any scale.
        teacher_WBSD: of the teacher's.

    Returns:
        int64 (W, V, B, T): places in the teacher's regions flattened to (W B S), largest cosine, the first of equals.
    """
    views, batch, regions, _ = student_VBTD.shape
    count, _, others, _ = teacher_WBSD.shape
    dtype = torch.float64 if student_VBTD.dtype == torch.float64 else torch.float32
    with torch.autocast(student_VBTD.device.type, enabled=False):
        # The student's length does not move its argmax.
        student = student_VBTD.to(dtype).transpose(0, 1).flatten(1, 2)
        teacher = F.normalize(teacher_WBSD.to(dtype), dim=-1).transpose(0, 1).flatten(1, 2)
        best_BVTW = torch.bmm(student, teacher.mT).view(batch, views, regions, count, others).argmax(dim=-1)
    first_WB = torch.arange(count * batch, device=student_VBTD.device).mul_(others).view(count, 1, batch, 1)
    return best_BVTW.permute(3, 1, 0, 2) + first_WB


def _gathered_targets(rows_K: Tensor, index_JM: Tensor, center_K: Tensor, temperature: float) -> PatchTargets:
    """Return a function that gives the mean over J of the distributions of the rows that a slice of M points to."""

    def targets(chunk: slice) -> Tensor:
        index = index_JM[:, chunk]
        rows = centred_softmax(rows_K[index[0]], center_K, temperature)
        for more in index[1:]:
            rows += centred_softmax(rows_K[more], center_K, temperature)
        return rows if len(index) == 1 else rows.mul_(1.0 / len(index))

    return targets
