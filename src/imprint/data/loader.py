"""Batches from a source: read, decoded and cut by threads, in counter order, ahead of the consumer.

Everything on a sample's way that costs time (reading, decoding, resampling, colour) releases the interpreter's lock,
so threads fill the cores without copies between processes; `benchmarks/loader.py` measures both. A step's samples are
split over the threads in small chunks, so one batch is ready early instead of several at once late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType

from imprint.core.errors import ConfigError
from imprint.data.assembly import Assembly, Request, available_cores
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask
from imprint.data.quarantine import Quarantine
from imprint.data.sources import Source, spread
from imprint.data.text_assembly import TextAssembly
from imprint.data.views import Clip, View


class Loader:
    """Training batches: which samples form step s, and every view of them, is a pure function of (seed, s).

    Workers, prefetching, ranks and restarts change nothing: `batches(k)` starts with the bytes that `batches(0)` has
    at its k-th place, and the rows of W ranks are the rows of one.

    A sample that cannot be decoded is quarantined and replaced by the first good one of a sequence keyed by (seed,
    sample); the views keep the random numbers of the sample that was asked for, `index_B` and `labels_B` are those of
    the one that stood in.

    Args:
        source: where images come from.
        views: what to cut; clips where the source is a ClipSource; none where it has no pixels.
        masks: patch masks to draw.
        batch_size: samples per step over all ranks.
        seed: the run's seed.
        workers: threads; None takes the cores of this machine, shared by the processes on it.
        rank: this process.
        world: number of processes.
        shuffle: see Sampler.
        drop_last: see Sampler.
        bad_limit: share of the source that may be bad before the run stops.
        quarantine_path: file that names bad samples, or None.
        prefetch: steps prepared ahead, at least one.
        pin_memory: allocate batches in page-locked memory, for copies to a CUDA device beside its work.

    Raises:
        ConfigError: when no batch can be formed.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[View] | Sequence[Clip],
        masks: Sequence[Mask] = (),
        *,
        batch_size: int,
        seed: int,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        bad_limit: float = 0.05,
        quarantine_path: str | os.PathLike[str] | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = source.order(
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world=world,
        )
        self.source, self.masks = source, tuple(masks)
        self._rank, self._world = rank, world
        self.quarantine = Quarantine(source, quarantine_path, bad_limit)
        self.workers = checked_workers(workers, world)
        self._assembly: Assembly | TextAssembly
        if source.pixels:
            self._assembly = Assembly(
                source, views, self.quarantine, workers=self.workers, prefetch=prefetch, pin_memory=pin_memory
            )
        else:
            self._assembly = TextAssembly(source, prefetch=prefetch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in one pass over the source; 0 for a stream of which nobody knows how long it is."""
        return self.sampler.steps_per_epoch

    def last_step(self, wanted: int) -> int:
        """Return how many steps there will be of the `wanted` ones; it is known when the last batch is handed out."""
        ends_at = self.sampler.ends_at
        return wanted if ends_at is None else min(wanted, ends_at)

    def batches(self, start_step: int = 0, stop_step: int | None = None) -> Iterator[Batch]:
        """Yield this rank's part of every step from `start_step` up to `stop_step` (without end for None).

        A stream may end earlier: after its last whole batch.

        Raises:
            DataError: when more samples are bad than allowed.
        """
        order = self.sampler
        return self._assembly.serve(
            Request(
                rows,
                order.seed,
                order.epoch(step),
                self.masks,
                step=step,
                first=self._rank * rows.size,
                total=self._world * rows.size,
            )  # fmt: skip
            for step, rows in order.walk(start_step, stop_step)
        )

    def annotate(self, source: Source) -> None:
        """Take the samples from `source` from now on: the same ones, of which more is known (`Source.targets`)."""
        self.source = self._assembly.source = source

    def close(self) -> None:
        """Stop and join the threads; batches that were handed out stay valid."""
        self.sampler.close()
        self._assembly.close()

    def __enter__(self) -> Loader:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()


def sweep(
    source: Source,
    view: View | Sequence[View],
    *,
    batch_size: int,
    workers: int | None = None,
    limit: int | None = None,
    bad_limit: float = 0.05,
    quarantine_path: str | os.PathLike[str] | None = None,
    pin_memory: bool = False,
    seed: int = 0,
    first: int = 0,
) -> Iterator[Batch]:
    """Yield the source once, in order, the last partial batch included: evaluation.

    Bad samples are quarantined and left out, not replaced: `index_B` says which rows are there (positions in `source`,
    also under `limit`). A batch may so be shorter than `batch_size`, and one without any good sample is passed over.

    Args:
        source: where images come from.
        view: what to cut; several views are cut from the same pixels.
        batch_size: most samples per batch.
        workers: threads; None takes the machine's cores.
        limit: use this many samples, spread evenly over the source, so that a source sorted by class keeps all of them.
        bad_limit: share of the source that may be bad.
        quarantine_path: file that names bad samples, or None.
        pin_memory: see Loader.
        seed: of views that are drawn.
        first: leave out this many samples at the start, to go on where an earlier sweep stopped.

    Raises:
        DataError: when more samples are bad than allowed.
    """
    views = [view] if isinstance(view, View) else list(view)
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}.")
    picked = spread(len(source), len(source) if limit is None else limit)
    quarantine = Quarantine(source, quarantine_path, bad_limit, of=picked.size)
    assembly = Assembly(source, views, quarantine, workers=checked_workers(workers), pin_memory=pin_memory)
    try:
        starts = range(first, picked.size, batch_size)
        yield from assembly.serve(Request(picked[a : a + batch_size], seed, 0, replace=False) for a in starts)
    finally:
        assembly.close()


def checked_workers(workers: int | None, processes: int = 1) -> int:
    """Return the number of threads: as asked, or this process's share of the machine's cores.

    Raises:
        ConfigError: when fewer than one is asked for.
    """
    if workers is None:
        return available_cores(processes)
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}; leave it out to take the machine's cores.")
    return workers
