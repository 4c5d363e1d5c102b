"""Threads that turn lists of sample numbers into batches, some steps ahead of whoever takes them."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.errors import BadImage, ConfigError, DataError
from imprint.core.rng import key
from imprint.data.augment import ViewEngine
from imprint.data.batch import Batch
from imprint.data.buffers import BufferPool
from imprint.data.clips import ClipEngine, ClipSource
from imprint.data.mask_kinds import Mask
from imprint.data.masks import Place, draw_masks
from imprint.data.quarantine import Quarantine
from imprint.data.sampler import Indices
from imprint.data.sources import Sample, Source
from imprint.data.views import Clip, View

PROBES = 64
"""Replacements that are tried for one bad sample; all of them bad means that the source is hopeless."""

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))  # the machine's fault, not the file's
_MOST_IN_CHUNK = 16


@dataclass(frozen=True)
class Request:
    """One batch to make.

    Attributes:
        index_B: samples asked for.
        seed: part of every random key.
        epoch: part of every random key.
        masks: what to draw beside the views.
        replace: put another sample in the place of a bad one; otherwise leave it out.
        step: number of the step; masks that a batch shares are keyed by it.
        first: place of the first of these rows in the global batch.
        total: rows of the global batch; 0 means these are all.
    """

    index_B: Indices
    seed: int
    epoch: int
    masks: tuple[Mask, ...] = ()
    replace: bool = True
    step: int = 0
    first: int = 0
    total: int = 0


class Assembly:
    """A pool of threads over one source and one set of views.

    Args:
        source: where images come from.
        views: what to cut; clips from a ClipSource.
        quarantine: where bad samples are named.
        workers: number of threads.
        prefetch: batches prepared ahead of the one that is taken.
        pin_memory: allocate views in page-locked memory.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[View] | Sequence[Clip],
        quarantine: Quarantine,
        *,
        workers: int,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        names = [view.name for view in views]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"views must have distinct names, at least one; got {names}.")
        self.source, self.quarantine = source, quarantine
        self.clips = isinstance(views[0], Clip)
        self.engine: Any = (ClipEngine if self.clips else ViewEngine)(
            tuple(views),  # type: ignore[arg-type]  # all of one kind
            channels=source.channels,
            dtype=source.dtype,
        )
        self.workers, self.prefetch, self.pin_memory = workers, prefetch, pin_memory
        self.buffers = BufferPool(keep=(prefetch + 2) * len(names))
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(workers, "imprint-data", initializer=_work_alone, initargs=(threads,))
        self._closed = False

    def serve(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield one batch per request, in order, keeping `prefetch` of them in work.

        Raises:
            DataError: when too many samples are bad; whatever else a worker raised surfaces here as well.
        """
        if self._closed:
            raise ConfigError("this loader is closed.")
        waiting = iter(requests)
        ahead: deque[_Job] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch and (request := next(waiting, None)) is not None:
                    ahead.append(_Job(self, request))
                if not ahead:
                    return
                batch = ahead.popleft().result()
                if len(batch):
                    yield batch
                del batch  # else its memory could not be used again before the next one is ready
        finally:
            for job in ahead:
                job.cancel()

    def submit(self, job: _Job, start: int, stop: int) -> Future[None]:
        """Have a thread make rows start..stop of a job."""
        return self._pool.submit(job.run, start, stop)

    def allocate(self, shape: tuple[int, ...]) -> Tensor:
        """Return memory for one view of a batch."""
        kind = self.source.dtype
        if self.pin_memory:  # torch's own cache reuses pinned blocks only after copies from them have ended
            return torch.empty(shape, dtype=torch.uint16 if kind == np.uint16 else torch.uint8, pin_memory=True)
        return torch.from_numpy(self.buffers.take(shape, kind))

    def close(self) -> None:
        """Stop and join the threads."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Job:
    """One batch in work."""

    def __init__(self, assembly: Assembly, request: Request) -> None:
        self.assembly, self.request = assembly, request
        self.index_B = request.index_B.copy()
        self._good = np.zeros(self.index_B.size, dtype=np.bool_)
        self._lock = threading.Lock()
        self._ready = False
        self._stopped = False
        chunk = max(1, min(_MOST_IN_CHUNK, self.index_B.size // (2 * assembly.workers)))
        cuts = range(0, self.index_B.size, chunk)
        self._parts = [assembly.submit(self, a, min(a + chunk, self.index_B.size)) for a in cuts]

    def _prepare(self) -> None:
        """Allocate and draw, once, on the first thread that gets here rather than on the consumer's."""
        with self._lock:
            if self._ready:
                return
            request, engine = self.request, self.assembly.engine
            self.views: dict[str, Tensor] = {}
            for name, (copies, *shape) in engine.shapes().items():
                self.views[name] = self.assembly.allocate((copies, self.index_B.size, *shape))
            self.out: dict[str, npt.NDArray[Any]] = {name: view.numpy() for name, view in self.views.items()}
            self.draws = engine.draw(request.seed, request.epoch, request.index_B)
            place = Place(
                seed=request.seed, epoch=request.epoch, step=request.step, index_B=request.index_B,
                first=request.first, total=request.total or request.index_B.size,
            )  # fmt: skip
            self.masks = {
                name: torch.from_numpy(mask) for kind in request.masks for name, mask in draw_masks(kind, place).items()
            }
            self._ready = True

    def run(self, start: int, stop: int) -> None:
        """Make rows start..stop."""
        self._prepare()
        for b in range(start, stop):
            if self._stopped:
                return
            try:
                self._fill(b)
            except BaseException:
                self._stopped = True
                raise

    def _fill(self, b: int) -> None:
        """Make row b from the sample asked for or, where that is bad, from the first good one that may stand in."""
        assembly, asked = self.assembly, int(self.request.index_B[b])
        if self._render(asked, b):
            return
        if not self.request.replace:
            return
        first, size = assembly.source.stand_ins(asked)
        for i in replacements(self.request.seed, asked, size, first):
            if self._render(int(i), b):
                return
        raise DataError(
            f"sample {asked} of '{assembly.source.spec}' ({assembly.source.name(asked)}) is damaged, and so are the "
            f"{PROBES} samples that were tried in its place. The source is unusable as it is; check a few of its files."
        )

    def _render(self, i: int, b: int) -> bool:
        quarantine = self.assembly.quarantine
        if quarantine.found(i):
            return False
        try:
            self.assembly.engine.render(self._read(i, b), self.draws, b, self.out)
        except BadImage as error:
            quarantine.add(i, error)
            return False
        except Exception as error:
            error.add_note(f"while making views of sample {i}: {self.assembly.source.name(i)}")
            raise
        self.index_B[b], self._good[b] = i, True
        return True

    def _read(self, i: int, b: int) -> Sample | list[Sample]:
        source = self.assembly.source
        try:
            if self.assembly.clips:
                assert isinstance(source, ClipSource)
                return source.read_frames(i, self.assembly.engine.offsets(self.draws, b))
            return source.read(i)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _EXHAUSTED:
                raise DataError(
                    f"sample {i} cannot be read because this process ran out of files or memory ({reason}). Use fewer "
                    "--workers, or raise the limit (ulimit -n)."
                ) from error
            raise BadImage("unreadable", reason) from error

    def cancel(self) -> None:
        """Stop making this batch; threads leave it after the sample they are at."""
        self._stopped = True
        for part in self._parts:
            part.cancel()

    def result(self) -> Batch:
        """Wait for all rows and hand them over."""
        try:
            for part in self._parts:
                part.result()
        except BaseException:
            self.cancel()
            raise
        self._prepare()  # an empty batch has no part that did
        labels = self.assembly.source.labels
        batch = Batch(
            views={} if self.assembly.clips else self.views,
            clips=self.views if self.assembly.clips else {},
            masks=self.masks,
            **beside(self.assembly.source, self.request.seed, self.request.epoch, self.index_B),
            index_B=torch.from_numpy(self.index_B),
            labels_B=None if labels is None else torch.from_numpy(np.asarray(labels[self.index_B], dtype=np.int64)),
        )
        return batch if self._good.all() else _picked(batch, torch.from_numpy(np.flatnonzero(self._good)))


def _work_alone(others: int) -> None:
    """Have torch use one core for what this thread calls (RandAugment): the cores are busy with its sisters.

    The number also becomes that of threads which start later, so another thread puts back at once what `others` had.
    """
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(others,))
    restore.start()
    restore.join()


def beside(source: Source, seed: int, epoch: int, index_B: Indices) -> dict[str, dict[str, Tensor]]:
    """Return the `tokens` and `targets` of a batch of samples."""
    tokens = {name: torch.from_numpy(rows) for name, rows in source.tokens(seed, epoch, index_B).items()}
    targets = {name: torch.from_numpy(rows) for name, rows in source.targets(index_B).items()}
    return {"tokens": tokens, "targets": targets}


def replacements(seed: int, index: int, size: int, first: int = 0) -> Indices:
    """Return which samples of [first, first + size) may stand in for a bad one, in order: a pure function."""
    words = key(seed, "replacement", index, np.arange(PROBES))
    return first + (words % np.uint64(size)).astype(np.int64)


def _picked(batch: Batch, rows: Tensor) -> Batch:
    return Batch(
        views={name: view[:, rows] for name, view in batch.views.items()},
        clips={name: clip[:, rows] for name, clip in batch.clips.items()},
        masks={name: mask[:, rows] for name, mask in batch.masks.items()},
        tokens={name: row[rows] for name, row in batch.tokens.items()},
        targets={name: row[rows] for name, row in batch.targets.items()},
        index_B=batch.index_B[rows],
        labels_B=None if batch.labels_B is None else batch.labels_B[rows],
    )


def available_cores(processes: int = 1) -> int:
    """Return the cores one of `processes` on this machine may use: affinity and container quota, shared equally."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # not Linux, or not the second version of control groups
        pass
    return max(1, cores // max(1, local))
