"""Small measures of a batch of embeddings that tell a healthy run from a collapsed one.

Shape suffixes: B images, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDEST = 512


@torch.no_grad()
def agreement(z1_BD: Tensor, z2_BD: Tensor) -> dict[str, Tensor]:
    """Return how alike positives are, how spread embeddings are, and how redundant their dimensions.

    Args:
        z1_BD: embeddings of one view, any scale; B >= 2.
        z2_BD: of the other, row i is of the same image.

    Returns:
        0-d float32 tensors. `embedding/positive_cosine`: mean cosine of positives. `embedding/std`: mean standard
        deviation per dimension of the L2-normalised `z1` times sqrt(D); 1 is spread over the sphere, 0 is collapse.
        `embedding/correlation`: root mean square of the correlations between different dimensions of `z1` (at most the
        first 512), 0 for independent and 1 for redundant ones; a batch of B alone shows about 1 / sqrt(B).
    """
    z1, z2 = F.normalize(z1_BD.float(), dim=-1), F.normalize(z2_BD.float(), dim=-1)
    width = min(z1.shape[1], _WIDEST)
    centred = z1_BD[:, :width].float()
    unit = F.normalize(centred - centred.mean(0), dim=0)
    # ||U'U||_F = ||UU'||_F: the smaller of the two squares.
    gram = unit @ unit.T if unit.shape[0] < width else unit.T @ unit
    alive = (unit.square().sum(0) > 0.5).sum()  # a dead dimension correlates with none, itself included
    off = (gram.square().sum() - alive).clamp_min(0) / (alive * (alive - 1)).clamp_min(1)
    return {
        "embedding/positive_cosine": (z1 * z2).sum(-1).mean(),
        "embedding/std": z1.std(dim=0).mean() * z1.shape[1] ** 0.5,
        "embedding/correlation": off.sqrt(),
    }
