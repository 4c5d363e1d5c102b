"""Regression losses on gathered rows: the masked tokens of all images, whose number differs between processes.

Shape suffixes: M rows (masked tokens), D values per row.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError

Width = Literal["mean", "sqrt"]


def masked_smooth_l1(
    outputs_MD: Tensor,
    targets_MD: Tensor,
    beta: float = 0.0,
    *,
    width: Width = "mean",
    reduction: Literal["mean", "sum"] = "mean",
    rows: Tensor | None = None,
) -> Tensor:
    r"""Return the mean over rows of a smooth L1 distance, or for beta 0 of the squared error.

    s(e) = e^2 / (2 beta) where |e| < beta, |e| - beta / 2 elsewhere (Huber 1964 over beta); e^2 for beta = 0, as
    fairseq's data2vec has it. A row's values are averaged, or summed and divided by sqrt(D) (fairseq).

    Args:
        outputs_MD: predictions.
        targets_MD: no gradient reaches them.
        beta: where the square becomes a line, >= 0.
        width: `mean` over D, or `sqrt`: sum / sqrt(D).
        reduction: over rows.
        rows: 0-d, what the sum over rows is divided by in place of M: the mean of M over processes, so that the mean
            of their losses is that of all rows. 0 counts as 1.

    Returns:
        0-d, float32 (float64 for float64 outputs); 0 when there are no rows.

    Raises:
        ConfigError: for shapes that differ or a negative beta.
    """
    if outputs_MD.shape != targets_MD.shape or outputs_MD.ndim != 2 or beta < 0:
        raise ConfigError(
            f"masked_smooth_l1: outputs {tuple(outputs_MD.shape)} and targets {tuple(targets_MD.shape)} must both be "
            f"(M, D) and beta at least 0, got {beta:g}."
        )
    with torch.autocast(outputs_MD.device.type, enabled=False):
        dtype = torch.float64 if outputs_MD.dtype == torch.float64 else torch.float32
        outputs, targets = outputs_MD.to(dtype), targets_MD.detach().to(dtype)
        if beta == 0:
            total = F.mse_loss(outputs, targets, reduction="sum")
        else:
            total = F.smooth_l1_loss(outputs, targets, reduction="sum", beta=beta)
        values = outputs_MD.shape[1]
        total = total / (values if width == "mean" else math.sqrt(values))
        if reduction == "sum":
            return total
        if rows is None:
            return total / max(1, outputs_MD.shape[0])
        return total / rows.to(dtype).clamp_min(1e-12 if rows.is_floating_point() else 1)
