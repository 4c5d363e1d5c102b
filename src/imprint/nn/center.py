"""Running statistics that a loss reads and a method moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imprint.losses.distillation import ema_center


class RunningMean(nn.Module):
    """An exponential moving average of rows, kept as a buffer (saved, resumed, synchronised by `reduce`).

    c <- m c + (1 - m) mean of the rows over all processes  (DINO, arXiv 2104.14294, Eq. 4).

    Args:
        width: K.
        momentum: m in [0, 1).
    """

    value: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(width))

    @torch.no_grad()
    def update_(self, rows_WBK: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move towards the mean of the rows; `reduce` averages it over processes."""
        self.value.copy_(ema_center(self.value, rows_WBK, self.momentum, reduce))
