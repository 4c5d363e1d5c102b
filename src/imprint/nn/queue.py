"""A first-in first-out memory of embeddings.

Shape suffixes: B rows pushed at once (of all processes), K rows kept, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.core.errors import ConfigError


class KeyQueue(nn.Module):
    """The last K rows that were pushed, oldest overwritten first (MoCo, arXiv 1911.05722, Sec. 3.2).

    Everything is a buffer, so checkpoints hold it and a resumed run goes on bit-equal: `keys` (K, D), `pointer` (1,),
    the row that the next push overwrites first, and `filled` (), the number of rows that were ever pushed, at most K.
    Rows `keys[:filled]` are real. MoCo's public code starts from random unit vectors and lets them count as negatives;
    here rows count only once they were pushed, unless `random_start` asks for the public code's way.

    Every process must push the rows of ALL processes in the order of ranks (`dist.collectives.all_gather`): all then
    hold the same queue, which equals the queue of one process with the whole batch.

    Args:
        width: D.
        size: K, a multiple of the rows pushed at once.
        normalise: L2-normalise rows when they are pushed (MoCo, NNCLR, SwAV).
        random_start: start with K random unit vectors that count (`filled` = K), from torch's global generator.

    Raises:
        ConfigError: for a width or size below 1.
    """

    keys: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, width: int, size: int, *, normalise: bool = True, random_start: bool = False) -> None:
        super().__init__()
        if width < 1 or size < 1:
            raise ConfigError(f"a queue of {size} keys of width {width} cannot be; both must be at least 1.")
        self.size, self.normalise = size, normalise
        start = F.normalize(torch.randn(size, width), dim=1) if random_start else torch.zeros(size, width)
        self.register_buffer("keys", start)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.register_buffer("filled", torch.tensor(size if random_start else 0))

    def check(self, rows: int) -> None:
        """Refuse a number of rows per push that the size is no multiple of; costs nothing, waits for no device.

        Raises:
            ConfigError: naming sizes that work.
        """
        if rows < 1 or self.size % rows:
            rows = max(1, rows)
            below, above = self.size // rows * rows, (self.size // rows + 1) * rows
            choices = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"a queue of {self.size} keys is no multiple of the {rows} keys that arrive at once (batch size over "
                f"all processes, per accumulation step); choose a queue of {choices} keys, or a batch that "
                f"divides {self.size}."
            )

    @torch.no_grad()
    def push_(self, keys_BD: Tensor) -> None:
        """Overwrite the B oldest rows, advance the pointer by B (mod K), and count the rows as filled.

        Args:
            keys_BD: rows of all processes, any floating dtype; detached by this.

        Raises:
            ConfigError: for another width, or B that does not divide K.
        """
        if keys_BD.ndim != 2 or keys_BD.shape[1] != self.keys.shape[1]:
            raise ConfigError(
                f"a queue of width {self.keys.shape[1]} cannot take rows of shape {tuple(keys_BD.shape)}."
            )
        rows = keys_BD.shape[0]
        self.check(rows)
        keys_BD = keys_BD.detach().to(self.keys.dtype)
        if self.normalise:
            keys_BD = F.normalize(keys_BD, dim=1)
        # The pointer stays on the device: indices instead of a slice, so that the host never waits for it.
        places_B = torch.arange(rows, device=self.keys.device).add_(self.pointer).remainder_(self.size)
        self.keys.index_copy_(0, places_B, keys_BD)
        self.pointer.add_(rows).remainder_(self.size)
        self.filled.add_(rows).clamp_max_(self.size)

    def load(self, keys_KD: Tensor, pointer: int = 0, filled: int | None = None) -> None:
        """Put rows in, as they are, with the row to overwrite next; all of them count unless `filled` says less.

        Raises:
            ConfigError: for rows of another shape or counts outside the queue.
        """
        count = self.size if filled is None else filled
        if keys_KD.shape != self.keys.shape or not 0 <= pointer < self.size or not 0 <= count <= self.size:
            raise ConfigError(
                f"a queue of {tuple(self.keys.shape)} cannot take {tuple(keys_KD.shape)} with pointer {pointer} and "
                f"{count} filled rows."
            )
        self.keys.copy_(keys_KD)
        self.pointer.fill_(pointer)
        self.filled.fill_(count)
