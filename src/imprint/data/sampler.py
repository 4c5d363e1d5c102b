"""Which samples form which step: a pure function of (seed, step), in constant memory, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError
from imprint.core.rng import key, permuted

Indices = npt.NDArray[np.int64]


class Order(Protocol):
    """Which samples form which step."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in one pass."""

    def epoch(self, step: int) -> int:
        """Return the pass that `step` belongs to, from 0."""

    @property
    def ends_at(self) -> int | None:
        """The step after the last one, where there is a last one and it is known; None otherwise."""

    def walk(self, start: int, stop: int | None) -> Iterator[tuple[int, Indices]]:
        """Yield (step, this rank's rows) from `start` up to `stop`, or to the end of what there is."""

    def state(self, step: int) -> dict[str, Any] | None:
        """Return what a checkpoint must keep to go on from `step`, JSON-ready; None where the step says all."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""

    def close(self) -> None:
        """Stop what runs ahead."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Batches over range(size): epoch e is a keyed permutation, step s takes its rows from epoch s // steps_per_epoch.

    The rows of a global batch go to the ranks in contiguous, equal parts, so rank r of W sees rows
    [r * b, (r + 1) * b) with b = batch_size / W, and one process sees the same batch as all of them together.

    Attributes:
        size: number of samples.
        batch_size: samples per step over all ranks.
        seed: the run's seed.
        shuffle: permute each epoch; otherwise 0, 1, 2, ...
        drop_last: leave out the samples that do not fill a batch (others each epoch, as the permutation changes).
        rank: which part of the batch.
        world: number of parts.

    Raises:
        ConfigError: when the batch does not split, or is larger than the source while `drop_last`.
    """

    size: int
    batch_size: int
    seed: int
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        """Check that a step exists."""
        if self.batch_size < 1 or self.batch_size % self.world:
            raise ConfigError(
                f"batch size {self.batch_size} does not split over {self.world} processes; use a multiple of "
                f"{self.world}."
            )
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} is outside a world of {self.world}.")
        if self.size < (self.batch_size if self.drop_last else 1):
            fits = self.size // self.world * self.world
            advice = f"Use --batch-size {fits} or less" if fits else f"Use at most {max(1, self.size)} processes"
            raise ConfigError(
                f"the source has {self.size} samples, fewer than one batch of {self.batch_size}. {advice}, or add data."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in one pass."""
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def epoch(self, step: int) -> int:
        """Return the pass that `step` belongs to, from 0."""
        return step // self.steps_per_epoch

    @property
    def ends_at(self) -> None:
        """None: another epoch follows."""

    def walk(self, start: int, stop: int | None) -> Iterator[tuple[int, Indices]]:
        """Yield (step, this rank's rows) from `start` up to `stop`, without end for None."""
        for step in count(start) if stop is None else range(start, stop):
            yield step, self.indices(step)

    def state(self, step: int) -> None:
        """Return None: any step's rows follow from its number."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def indices(self, step: int) -> Indices:
        """Return the sample numbers of this rank's rows of `step`, int64 (b,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        rows = min(self.batch_size, self.size - start)
        low, high = (start + rows * r // self.world for r in (self.rank, self.rank + 1))
        positions = np.arange(low, high, dtype=np.int64)
        if not self.shuffle:
            return positions
        return permuted(positions, self.size, key(self.seed, "order", epoch))
