"""Features of past batches, newest first.

Shape suffixes: W views, Q length, A rows that come in, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError


class FeatureQueue(nn.Module):
    """The last Q features of each of W views, newest rows first, in buffers (saved and resumed with the method).

    SwAV (arXiv 2006.09882, Sec. 3.1 and 4.3) adds them to small batches when it balances assignments.

    Args:
        views: W.
        length: Q.
        width: D.
    """

    features: Tensor
    filled: Tensor

    def __init__(self, views: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(views, length, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def full(self) -> Tensor:
        """0-d bool on the device: whether every row holds a feature."""
        return self.filled >= self.features.shape[1]

    def check(self, rows: int) -> None:
        """Refuse more rows per push than the queue holds.

        Raises:
            ConfigError: saying how long it must be.
        """
        length = self.features.shape[1]
        if rows > length:
            raise ConfigError(
                f"a queue of {length} features cannot take a batch of {rows}; make it at least that long."
            )

    @torch.no_grad()
    def push_(self, z_WAD: Tensor) -> None:
        """Put rows in front, in their order; as many of the oldest leave.

        Raises:
            ConfigError: for more rows than the queue holds.
        """
        rows, length = z_WAD.shape[1], self.features.shape[1]
        self.check(rows)
        # One copy of the part that stays: source and target overlap.
        self.features[:, rows:] = self.features[:, : length - rows].clone()
        self.features[:, :rows] = z_WAD
        self.filled += rows
