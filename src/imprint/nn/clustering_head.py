"""CAPI's clustering head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClusteringHead(nn.Module):
    """Logits l = W x / ||x|| + b of patches over K clusters (CAPI, arXiv 2502.08769, Sec. 3.2).

    W starts from N(0, 1), b from 0 (public code). Computed in float32 (float64 for float64 patches) under autocast,
    too: Sinkhorn divides the logits by 0.06.

    Args:
        width: D.
        clusters: K.
        bias: with b.
    """

    def __init__(self, width: int, clusters: int, *, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(width, clusters, bias=bias)
        nn.init.normal_(self.layer.weight)
        if bias:
            nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., K) of patches (..., D)."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.layer(self.unit(x))
        return logits

    def unit(self, x: Tensor) -> Tensor:
        """Return the patches as they are multiplied: of length 1, in the weight's dtype."""
        return F.normalize(x.to(self.layer.weight.dtype), dim=-1, eps=1e-7)
