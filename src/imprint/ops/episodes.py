"""Few-shot classifiers for many episodes at once, in closed form.

Shape suffixes: E episodes, W ways, S shots, Q queries of each way, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def centroid_logits(support_EWSD: Tensor, query_EMD: Tensor, *, cosine: bool) -> Tensor:
    """Return (E, M, W): how near every query is to the mean of each way's support.

    -|q - c|^2 up to a term of the query alone (prototypical networks, arXiv 1703.05175, Eq. 2), or the cosine of q and
    c (arXiv 1904.04232, Sec. 3.3).
    """
    centre_EWD = support_EWSD.mean(2)
    if cosine:
        return F.normalize(query_EMD, dim=-1) @ F.normalize(centre_EWD, dim=-1).transpose(1, 2)
    product = query_EMD @ centre_EWD.transpose(1, 2)
    return 2.0 * product - centre_EWD.square().sum(-1)[:, None, :]


def ridge_logits(support_EWSD: Tensor, query_EMD: Tensor, penalty: float) -> Tensor:
    """Return (E, M, W) of ridge regression from features to one-hot labels, with a free intercept.

    With X and Y the support's features and labels, both centred: q X^T (X X^T + penalty I)^-1 Y, the Woodbury form of
    arXiv 1805.08136 (Eq. 6), whose systems are as large as the support, not as the features. Labels are balanced, so
    the mean of Y adds the same to every way and is left out.
    """
    episodes, ways, shots, width = support_EWSD.shape
    flat = support_EWSD.reshape(episodes, ways * shots, width)
    mean = flat.mean(1, keepdim=True)
    x = flat - mean
    y = torch.eye(ways, device=x.device, dtype=x.dtype).repeat_interleave(shots, 0) - 1.0 / ways
    gram = x @ x.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(penalty)
    weight = torch.linalg.solve(gram, y.expand(episodes, -1, -1))
    return (query_EMD - mean) @ x.transpose(1, 2) @ weight
