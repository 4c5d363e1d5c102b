"""Distillation of features: a student's projected vectors match a teacher's.

Shape suffixes: N vectors (of images, or of all patches of all images), D the teacher's width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError

Distance = Literal["mse", "cosine"]


def feature_distance(student: Tensor, teacher: Tensor, kind: Distance = "mse") -> Tensor:
    r"""Return the mean distance of vectors of the student and of the teacher.

    `mse`: mean over vectors and elements of (s - n(t))^2, n(t) = (t - mean(t)) / sqrt(var(t) + 1e-5) over the elements
    of one vector. It is the L2 loss of FitNets (arXiv 1412.6550, Eq. 3) on a scale that is the same for every teacher:
    0 when equal, 1 for a student that says 0.

    `cosine`: mean over vectors of 1 - <s, t> / (|s| |t|), in [0, 2].

    Args:
        student: (..., D), after the projection to the teacher's width.
        teacher: (..., D); no gradient reaches it.
        kind: see above.

    Returns:
        0-d loss >= 0, float32 (float64 for float64 inputs).

    Raises:
        ConfigError: for vectors that do not fit together.
    """
    if student.shape != teacher.shape or student.ndim < 2 or student.numel() == 0:
        raise ConfigError(
            f"feature_distance: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal "
            "non-empty (..., D)."
        )
    with torch.autocast(student.device.type, enabled=False):
        s_ND, t_ND = _rows(student), _rows(teacher.detach()).to(student.device)
        if kind == "cosine":
            return (1.0 - F.cosine_similarity(s_ND, t_ND, dim=1)).mean()
        return F.mse_loss(s_ND, F.layer_norm(t_ND, t_ND.shape[1:]).to(s_ND.dtype))


def _rows(x: Tensor) -> Tensor:
    return (x if x.dtype == torch.float64 else x.float()).flatten(0, -2)
