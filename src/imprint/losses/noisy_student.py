"""The loss of a noisy student: one cross entropy over labelled and pseudo-labelled images together.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import ConfigError


def joint_cross_entropy(
    logits_BK: Tensor,
    labels_B: Tensor,
    soft_BK: Tensor | None = None,
    pseudo_B: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    ratio: float = 0.0,
) -> Tensor:
    r"""Return (1 + r) / B times the sum of H(q_i, softmax(z_i)) over the images of a batch, in nats.

    q_i is the one-hot label smoothed to (1 - s) e_y + s / K, or, for a pseudo-labelled image with a soft label, the
    teacher's distribution as it is (google-research/noisystudent, main.py: hard pseudo-labels are smoothed as well).

    The paper averages over the concatenated batch (arXiv 1911.04252, Sec. 3.2); its code divides the sum by the number
    of labelled images instead, so that they weigh as much as without any pseudo-label. B / (1 + r) is that number.

    Args:
        logits_BK: the student's.
        labels_B: int64 classes, known or the teacher's decision; a label of -1 has no term.
        soft_BK: the teacher's distributions, rows of nonnegative numbers; read where `pseudo_B` is True. Rows are
            scaled to sum to one. None for hard pseudo-labels.
        pseudo_B: bool, which images are pseudo-labelled; needed with `soft_BK`.
        smoothing: s in [0, 1).
        ratio: r >= 0, unlabelled images for each labelled one.

    Returns:
        0-d loss, float32 (float64 for float64 logits). No gradient reaches the labels.

    Raises:
        ConfigError: for shapes that do not fit together or numbers out of range.
    """
    if logits_BK.ndim != 2 or labels_B.shape != logits_BK.shape[:1]:
        raise ConfigError(
            f"joint_cross_entropy: logits {tuple(logits_BK.shape)} and labels {tuple(labels_B.shape)} are no (B, K) "
            "and (B)."
        )
    if soft_BK is not None and (soft_BK.shape != logits_BK.shape or pseudo_B is None):
        raise ConfigError(
            f"joint_cross_entropy: soft labels {tuple(soft_BK.shape)} must be as the logits {tuple(logits_BK.shape)}, "
            "with pseudo_B saying which rows count; a teacher of other classes cannot be followed."
        )
    if not 0.0 <= smoothing < 1.0 or ratio < 0.0:
        raise ConfigError(
            f"joint_cross_entropy: smoothing {smoothing} must lie in [0, 1), ratio {ratio} be at least 0."
        )
    with torch.autocast(logits_BK.device.type, enabled=False):
        wide = logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float()
        log_p_BK = torch.log_softmax(wide, dim=1)
        known_B = labels_B >= 0
        right_B = log_p_BK.gather(1, labels_B.clamp_min(0)[:, None]).squeeze(1)
        loss_B = -((1.0 - smoothing) * right_B + smoothing * log_p_BK.mean(1))
        if soft_BK is not None and pseudo_B is not None:
            q_BK = soft_BK.detach().to(wide.dtype)
            taught_B = -(q_BK * log_p_BK).sum(1) / q_BK.sum(1).clamp_min(torch.finfo(wide.dtype).tiny)
            loss_B = torch.where(pseudo_B, taught_B, loss_B)
        return torch.where(known_B, loss_B, 0.0).sum() * ((1.0 + ratio) / len(loss_B))
