"""What Barlow Twins and VICReg share: a batch spread over processes, its statistics, and which matrix is the smaller.

The redundancy of D dimensions over n rows is a sum of squares of the D x D matrix X'Y. Since
||X'Y||_F^2 = <XX', YY'>, the n x n Gram matrices tell the same, and where n < D they are smaller.

Shape suffixes: B rows of this process, A rows of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imprint.core.errors import ConfigError

Exchange = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, kw_only=True)
class Peers:
    """The processes that share one batch; the default is a process alone.

    A loss that takes them is that of the batch of all processes: its mean over processes is the loss, and its gradient
    with regard to a process's own rows is `count` times that of the whole, so that gradients averaged over processes
    (DDP) are those of one process with all rows. Neither callable needs a gradient of its own.

    Attributes:
        count: number of processes; each brings the same number of rows.
        rank: this one's place.
        gather: (B, ...) -> (A, ...), the rows of all processes by rank.
        total: the sum of a tensor over processes.
    """

    count: int = 1
    rank: int = 0
    gather: Exchange = _same
    total: Exchange = _same

    def own(self, rows: int) -> slice:
        """Return where this process's `rows` rows lie in the gathered ones."""
        return slice(self.rank * rows, (self.rank + 1) * rows)


def check_pair(name: str, first_BD: Tensor, second_BD: Tensor, rows: int) -> None:
    """Refuse two branches that do not fit together.

    Raises:
        ConfigError: for shapes other than two equal (B, D) matrices, or fewer than two rows in all.
    """
    if first_BD.ndim != 2 or first_BD.shape != second_BD.shape or first_BD.shape[1] == 0:
        raise ConfigError(
            f"{name}: the two branches must be equal (B, D) matrices, got {tuple(first_BD.shape)} and "
            f"{tuple(second_BD.shape)}; give both projectors one output width."
        )
    if rows < 2:
        raise ConfigError(f"{name}: statistics over a batch need at least 2 rows, got {rows}; use a larger batch.")


def wide(x_BD: Tensor) -> Tensor:
    """Return float32 for half precision; float32 and float64 stay."""
    return x_BD if x_BD.dtype == torch.float64 else x_BD.float()


def square_sum(x: Tensor) -> Tensor:
    """Return the sum of squares of a matrix in one pass, summed by rows first so that float32 holds the digits."""
    return torch.linalg.vector_norm(x, dim=1).square().sum()


def column_dots(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """Return sum_b x_bd y_bd for every d, without a product of the full size."""
    out_D = torch.zeros(x_BD.shape[1], dtype=x_BD.dtype, device=x_BD.device)
    rows = max(1, x_BD.shape[0] // 16)  # sixteen parts: a part's product is small beside the inputs
    for start in range(0, x_BD.shape[0], rows):
        part = slice(start, start + rows)
        out_D += (x_BD[part] * y_BD[part]).sum(0)
    return out_D
