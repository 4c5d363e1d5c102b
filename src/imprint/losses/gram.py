"""Gram anchoring: keeps how alike the patches of an image are to each other as an earlier teacher saw it (DINOv3).

Shape suffixes: B images, N patches of an image, D width, P problems (images, or the one batch), R rows of a problem.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

Negatives = Literal["keep", "drop", "drop_teacher"]
_BUDGET = 2**22
"""Similarities held at a time: 16 MB of float32, twice."""


def gram_mse(
    student_BND: Tensor,
    teacher_BND: Tensor,
    *,
    level: Literal["image", "batch"] = "image",
    negatives: Negatives = "keep",
) -> Tensor:
    r"""Return the mean of (S - T)^2 over pairs of patches, S = X X^T and T = Y Y^T with rows of length 1.

    L_Gram = || X_S X_S^T - X_G X_G^T ||_F^2 (DINOv3, arXiv 2508.10104, Sec. 4.2, Eq. 2); the public code takes the mean
    over all entries instead of the sum, and so does this. Only the patches' directions enter, so features are free to
    move as long as their similarities stay.

    One pass over the similarities, a few million at a time, gives the loss and its gradient 4 / n (S - T) X: the
    matrices never exist as a whole, which matters for the patches of a whole batch or of large images. The gradient is
    kept and handed over once: backward can run once per forward.

    Args:
        student_BND: patch features, any scale.
        teacher_BND: those of the frozen teacher, of any width; no gradient reaches them.
        level: `image` compares patches of the same image, `batch` all patches of this process (the code's
            `img_level=False`).
        negatives: `drop` sets negative similarities of both to 0 (the code's `remove_neg`); `drop_teacher` those of the
            teacher, and the student's where both are negative (`remove_only_teacher_neg`).

    Returns:
        0-d loss, float32 (float64 for float64 features), in [0, 4].

    Raises:
        ConfigError: for shapes that do not fit.
    """
    if student_BND.ndim != 3 or teacher_BND.shape[:2] != student_BND.shape[:2] or not student_BND.numel():
        raise ConfigError(
            f"gram_mse: student {tuple(student_BND.shape)} and teacher {tuple(teacher_BND.shape)} must be (B, N, D) of "
            "the same images and patches."
        )
    dtype = torch.float64 if student_BND.dtype == torch.float64 else torch.float32
    with torch.autocast(student_BND.device.type, enabled=False):
        x_BND = F.normalize(student_BND.to(dtype), dim=-1)
        y_BND = F.normalize(teacher_BND.detach().to(dtype), dim=-1)
        if level == "batch":
            x_BND, y_BND = x_BND.flatten(0, 1)[None], y_BND.flatten(0, 1)[None]
        loss: Tensor = _Gram.apply(x_BND, y_BND, negatives)
    return loss


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PND: Tensor, y_PND: Tensor, negatives: Negatives) -> Tensor:
        problems, patches, _ = x_PND.shape
        count = problems * patches * patches
        images = max(1, _BUDGET // patches**2)
        rows = max(1, min(patches, _BUDGET // patches))
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(x_PND) if wanted else None
        total = x_PND.new_zeros(())
        for first in range(0, problems, images):
            some = slice(first, first + images)
            x, y = x_PND[some], y_PND[some]
            for start in range(0, patches, rows):
                part = slice(start, start + rows)
                s_PRN, t_PRN = x[:, part] @ x.mT, y[:, part] @ y.mT
                gone = None
                if negatives == "drop":
                    gone = s_PRN < 0
                    s_PRN.clamp_min_(0)
                    t_PRN.clamp_min_(0)
                elif negatives == "drop_teacher":
                    s_PRN.masked_fill_((s_PRN < 0) & (t_PRN < 0), 0)  # as the teacher's there: no gradient either
                    t_PRN.clamp_min_(0)
                gap_PRN = s_PRN.sub_(t_PRN)
                total += gap_PRN.flatten().dot(gap_PRN.flatten())
                if grad is not None:
                    if gone is not None:
                        gap_PRN.masked_fill_(gone, 0)
                    # The matrix of gaps is symmetric, so a row's part as a row equals its part as a column.
                    grad[some, part] = (gap_PRN @ x).mul_(4.0 / count)
        ctx.grad = grad
        return total.div_(count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grad is None:
            raise RuntimeError("gram_mse keeps its gradient and hands it over once; run the forward again.")
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(upstream), None, None
