"""How near the representation of a generated image is to its condition, among those of other images.

Shape suffixes: S samples, B images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import DataError


def condition_ranks(sampled_SD: Tensor, conditions_BD: Tensor, own_S: Tensor) -> Tensor:
    """Return the rank of each sample's own condition by Euclidean distance, 1 for the nearest (RCDM, Sec. 3.2).

    Of equal distances the own one counts as the farthest.

    Args:
        sampled_SD: representations of the samples.
        conditions_BD: what they were generated from, and others.
        own_S: int64, the row of each sample's own condition.

    Returns:
        int64 (S,), from 1 to B.

    Raises:
        DataError: for fewer than two conditions, which leave nothing to rank.
    """
    if len(conditions_BD) < 2:
        raise DataError("ranks need two conditions or more.")
    distance_SB = torch.cdist(sampled_SD.double(), conditions_BD.double(), compute_mode="donot_use_mm_for_euclid_dist")
    own_S1 = distance_SB.gather(1, own_S[:, None])
    return (distance_SB <= own_S1).sum(1)
