"""The distance between all pairs of positives, without a loop over pairs.

Shape suffixes: V views, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError


def positive_distance(z: Tensor, *, norm: bool = True) -> Tensor:
    r"""Return W-MSE's loss over embeddings (arXiv 2007.06346, Eq. 5 and 6): mean over all V(V-1)/2 pairs of views.

    sum_{i<j} ||z_i - z_j||^2 = V sum_i ||z_i - mean||^2, so all pairs cost as much as one.

    Arithmetic is float32 for float16 and bfloat16 inputs, also under autocast, and float64 for float64.

    Args:
        z: (V, ..., D), V >= 2; the same place in every view belongs to the same image.
        norm: rows of length 1, distance 2 - 2 cos (the default of paper and code); else mean squared difference over D.

    Returns:
        0-d loss, float32 (float64 for float64 inputs).

    Raises:
        ConfigError: for fewer than two views.
    """
    views = z.shape[0]
    if z.ndim < 3 or views < 2:
        raise ConfigError(f"w_mse: positives need at least two views (V, ..., D), got the shape {tuple(z.shape)}.")
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        if norm:
            z = F.normalize(z, dim=-1)
        # V / pairs = 2 / (V - 1)
        distance = (z - z.mean(0)).square().sum((0, -1)).mean() * (2.0 / (views - 1))
        return distance if norm else distance / z.shape[-1]
