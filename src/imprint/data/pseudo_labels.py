"""Images with pseudo-labels: which of them are used, and how they are mixed with the labelled ones.

Letters: N images that a teacher looked at, E entries (an image that is repeated has several), K classes, B a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError
from imprint.core.rng import key, permuted
from imprint.data.combine import Concat
from imprint.data.headers import Layout
from imprint.data.sampler import Order
from imprint.data.sources import Labels, Sample, Source, digest

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What a method wants a teacher to say about unlabelled images, and how often it wants to see them.

    Attributes:
        confidence: smallest probability of the teacher's class; images below it are left out.
        per_class: entries of every class: the most confident images, or all of them repeated where there are fewer; 0
            takes the number of the largest class, so that nothing is cut and smaller classes are repeated.
        soft: hand over the teacher's distribution, not its decision alone.
        temperature: of that distribution; confidence is always judged at 1.
        ratio: unlabelled images for each labelled one in a batch.
    """

    confidence: float = 0.3
    per_class: int = 130_000
    soft: bool = True
    temperature: float = 1.0
    ratio: float = 1.0

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Return how many rows of a batch are labelled and how many pseudo-labelled.

        Raises:
            ConfigError: for a batch that has no room for one of each.
        """
        labelled = round(batch_size / (1.0 + self.ratio))
        if labelled < 1 or labelled >= batch_size:
            raise ConfigError(
                f"a batch of {batch_size} images, {self.ratio:g} unlabelled ones for each labelled one, has "
                f"{labelled} labelled rows; use --batch-size {max(2, round(1 + self.ratio))} or more."
            )
        return labelled, batch_size - labelled


def enough(positions_E: Indices, rows: int) -> Indices:
    """Return positions that fill at least one batch, by repeating all of them: each then gets views of its own."""
    return np.tile(positions_E, max(1, -(-rows // max(1, positions_E.size))))


def balanced(confidence_N: Floats, decision_N: Labels, classes: int, wanted: PseudoLabels, seed: int) -> Indices:
    """Return which images are used, class after class, the most confident first; repeated images stand several times.

    Of every class the `per_class` images with the highest confidence (arXiv 1911.04252, Sec. 3.1). A class of n < P
    images gives each of them floor(P / n) times and P mod n of them, drawn by the seed, once more. (The public code
    rounds that remainder image by image, and cuts at a threshold on a grid instead of the exact number.)

    Args:
        confidence_N: the teacher's probability of the class it decides for.
        decision_N: that class.
        classes: K.
        wanted: threshold and number per class.
        seed: of the draw.

    Returns:
        Positions (E,) in [0, N); none where nothing is confident. A class without any confident image has none.
    """
    able = np.flatnonzero(confidence_N >= wanted.confidence)
    counts = np.bincount(decision_N[able], minlength=classes)
    target = wanted.per_class or int(counts.max(initial=0))
    order = able[np.lexsort((able, -confidence_N[able], decision_N[able]))]
    found = []
    for own in np.split(order, np.cumsum(counts)[:-1]):
        if own.size >= target or own.size == 0:
            found.append(own[:target])
            continue
        again = np.argsort(key(seed, "pseudo-labels", own), kind="stable")[: target % own.size]
        found.append(np.concatenate([np.tile(own, target // own.size), own[np.sort(again)]]))
    return np.concatenate(found).astype(np.int64)


class PseudoLabelled(Source):
    """Labelled images, and behind them pseudo-labelled ones; every batch holds both, in a fixed ratio.

    `labels` are the known classes and the teacher's decisions. `targets` say which rows are `pseudo` (bool, (B,)) and,
    with soft labels, the teacher's distribution over `classes` ((B, K), float32; zeros where the class is known).

    Args:
        labelled: images whose class is known; its labels count.
        unlabelled: the N images that a teacher looked at.
        entries_E: which of them are used, as of `balanced`.
        decision_E: the class of every entry.
        rows_E: row of every entry in `soft_UK`; None without soft labels.
        soft_UK: distributions of the images that are used, each once.
        ratio: see `PseudoLabels.ratio`.
    """

    def __init__(
        self,
        labelled: Source,
        unlabelled: Source,
        entries_E: Indices,
        decision_E: Labels,
        rows_E: Indices | None,
        soft_UK: Floats | None,
        wanted: PseudoLabels,
    ) -> None:
        assert labelled.labels is not None
        self.both = Concat([labelled, unlabelled])
        self.entries_E, self.rows_E, self.soft_UK, self.wanted = entries_E, rows_E, soft_UK, wanted
        self.known = len(labelled)
        self.classes = labelled.classes
        self.labels = np.concatenate([labelled.labels, decision_E]).astype(np.int64)
        self.spec = f"{labelled.spec} and {len(entries_E)} pseudo-labelled of {unlabelled.spec}"

    def __len__(self) -> int:
        """Return the number of labelled images and entries."""
        return self.known + int(self.entries_E.size)

    def _place(self, i: int) -> int:
        return i if i < self.known else self.known + int(self.entries_E[i - self.known])

    def read(self, i: int) -> Sample:
        """Return sample `i`."""
        return self.both.read(self._place(i))

    def name(self, i: int) -> str:
        """Return its name in its own source."""
        return self.both.name(self._place(i))

    def targets(self, index_B: Indices) -> dict[str, npt.NDArray[Any]]:
        """Return which samples are pseudo-labelled and, with soft labels, what the teacher says about them."""
        pseudo_B = index_B >= self.known
        if self.rows_E is None or self.soft_UK is None:
            return {"pseudo": pseudo_B}
        soft_BK = np.zeros((index_B.size, self.soft_UK.shape[1]), dtype=np.float32)
        soft_BK[pseudo_B] = self.soft_UK[self.rows_E[index_B[pseudo_B] - self.known]]
        return {"pseudo": pseudo_B, "classes": soft_BK}

    def stand_ins(self, i: int) -> tuple[int, int]:
        """A labelled image is replaced by a labelled one, and an unlabelled one by its like."""
        return (0, self.known) if i < self.known else (self.known, len(self) - self.known)

    def order(self, *, batch_size: int, seed: int, shuffle: bool, drop_last: bool, rank: int, world: int) -> Order:
        """Return batches of both kinds; they are always shuffled and whole."""
        labelled, pseudo = self.wanted.rows(batch_size)
        return MixedOrder(
            sizes=(self.known, len(self) - self.known), rows=(labelled, pseudo), seed=seed, rank=rank, world=world
        )

    @cached_property
    def layout(self) -> Layout:
        """The widest and deepest of the two."""
        return self.both.layout

    @cached_property
    def fingerprint(self) -> str:
        """Digest over both and the entries."""
        return digest(self.both.fingerprint, self.entries_E)


@dataclass(frozen=True, kw_only=True)
class MixedOrder:
    """Batches with a fixed number of rows from each of two ranges, [0, n) and [n, n + m), each permuted pass by pass.

    The two kinds are spread evenly over a batch, so that parts of it (processes, accumulation) hold both, and process r
    of W has the r-th part of the rows that one process would have. A pass over the first range (the labelled images)
    counts as an epoch: that is how the paper counts.

    Attributes:
        sizes: (n, m), each at least the rows of its kind.
        rows: of either kind in a batch.
        seed: the run's.
        rank: this process.
        world: number of processes.
    """

    sizes: tuple[int, int]
    rows: tuple[int, int]
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def _steps(self) -> tuple[int, int]:
        """Steps of one pass over each range; rows that do not fill a batch are others in every pass."""
        return self.sizes[0] // self.rows[0], self.sizes[1] // self.rows[1]

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in one pass over the labelled images."""
        return self._steps[0]

    def epoch(self, step: int) -> int:
        """Return what views are drawn by beside the sample: it grows with every pass over either range."""
        first, second = self._steps
        return step // first + step // second

    @property
    def ends_at(self) -> int | None:
        """There is no last step."""
        return None

    def walk(self, start: int, stop: int | None) -> Iterator[tuple[int, Indices]]:
        """Yield (step, this rank's rows)."""
        step = start
        while stop is None or step < stop:
            yield step, self.indices(step)
            step += 1

    def state(self, step: int) -> None:
        """Return None: any step's rows follow from its number."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def indices(self, step: int) -> Indices:
        """Return the sample numbers of this rank's rows of `step`, int64 (b,)."""
        total = sum(self.rows)
        place = np.arange(total, dtype=np.int64)
        before = place * self.rows[0] // total
        first = (place + 1) * self.rows[0] // total > before  # whether a row is of the first kind
        drawn = np.where(
            first,
            self._drawn(0, step, np.where(first, before, 0)),
            self._drawn(1, step, np.where(first, 0, place - before)),
        )
        low, high = (total * r // self.world for r in (self.rank, self.rank + 1))
        return drawn[low:high]

    def _drawn(self, kind: int, step: int, place: Indices) -> Indices:
        """Return the samples at places of this step's rows of one kind."""
        one_pass, within = divmod(step, self._steps[kind])
        permutation = key(self.seed, "order", ("labelled", "pseudo-labelled")[kind], one_pass)
        start = 0 if kind == 0 else self.sizes[0]
        return start + permuted(within * self.rows[kind] + place, self.sizes[kind], permutation)
