"""What a frozen teacher says about images that always look the same: asked once, kept in the run folder.

RUN/teacher holds float32 arrays, one file for each name and process that asked, `part.R.json` with how far process R
is, and, once all are done, `answers.json`. A killed run goes on asking where it was.

Letters: N images of the source, B of a batch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imprint.backbones.stored import write_aside
from imprint.core.errors import CheckpointError, DataError
from imprint.data.batch import Batch
from imprint.data.headers import Layout
from imprint.data.loader import Loader, sweep
from imprint.data.sources import Sample, Source
from imprint.data.stream import Stream
from imprint.data.views import PLAIN, CenterCrop, View
from imprint.dist.collectives import barrier
from imprint.dist.world import World
from imprint.evals.feature_cache import key_of, weights_digest
from imprint.train.step import Stepper

FOLDER = "teacher"
KEEP_SECONDS = 10.0

Floats = npt.NDArray[np.float32]


def keep_answers(stepper: Stepper, loader: Loader, folder: Path) -> None:
    """Let the loader hand over what the method's frozen teacher says, where that never changes.

    Nothing happens for a method without one, for views that are drawn anew each time, and for a stream. Every process
    must call it; each asks about its share of the images, in batches as large as those of training, so that the answers
    have the bits that the teacher would give there.

    Raises:
        DataError: when too many images are damaged.
        CheckpointError: when the disk is full or refuses.
    """
    config, source = stepper.config, loader.source
    teacher = stepper.method.frozen_teacher()
    if teacher is None or isinstance(source, Stream):
        return
    views = type(stepper.method).views(config.method, config.encoder.image_size)
    if not all(is_fixed(view) for view in views):
        return
    rows = config.batch_size // (stepper.world.size * config.accumulate)
    key = key_of({
        "weights": weights_digest(teacher),
        "source": [source.fingerprint, len(source)],
        "view": repr(views[0]),
        "normalise": repr(stepper.normalise),
        "method": repr(config.method),
        "precision": [stepper.precision.name, stepper.world.device.type, stepper.precision.channels_last, rows],
    })  # fmt: skip
    place = folder / FOLDER
    if Answers.stored(place, key) is None:
        _ask(teacher, stepper, source, views[0], rows, place, key)
        barrier()
        if stepper.world.main:
            _complete(place, key, stepper.world)
        barrier()
    answers = Answers.stored(place, key)
    if answers is None:
        raise CheckpointError(f"{place} loses what is written to it; put the run on another disk.")
    loader.annotate(Taught(source, answers))


def is_fixed(view: View) -> bool:
    """Tell whether a view is the same every time: the plain centre crop, once."""
    looks = {view.look_of(copy) for copy in range(view.count)}
    return isinstance(view.crop, CenterCrop) and view.count == 1 and looks == {PLAIN}


@dataclass(frozen=True)
class Answers:
    """Arrays of N rows by name, memory-mapped, each in one or several files.

    Attributes:
        place: the folder.
        starts: first row of each part, and N.
        shapes: shape of a row by name.
    """

    place: Path
    starts: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def stored(cls, place: Path, key: str) -> Answers | None:
        """Return the answers in a folder; None where they are not all there, or are about something else."""
        try:
            state = json.loads((place / "answers.json").read_text(encoding="utf-8"))
            shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
            found = cls(place, tuple(state["starts"]), shapes)
            whole = state["key"] == key and all(
                file_of(place, name, part).stat().st_size == 4 * math.prod(shape) * count
                for name, shape in shapes.items()
                for part, count in enumerate(np.diff(found.starts).tolist())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if whole else None

    @cached_property
    def parts(self) -> dict[str, list[Floats]]:
        """The files by name, in order."""
        counts = np.diff(self.starts).tolist()
        return {
            name: [
                np.memmap(file_of(self.place, name, part), np.float32, "r", shape=(count, *shape))
                if count
                else np.empty((0, *shape), np.float32)
                for part, count in enumerate(counts)
            ]
            for name, shape in self.shapes.items()
        }

    def rows(self, index_B: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Return the rows of these samples, each array (B, ...)."""
        part_B = np.searchsorted(self.starts, index_B, side="right") - 1
        found = {}
        for name, parts in self.parts.items():
            out = np.empty((index_B.size, *self.shapes[name]), np.float32)
            for part in np.unique(part_B):
                mine_B = part_B == part
                out[mine_B] = parts[part][index_B[mine_B] - self.starts[part]]
            found[name] = out
        return found


class Taught(Source):
    """A source of which a teacher's answers are known: they are the `targets` of its samples."""

    def __init__(self, source: Source, answers: Answers) -> None:
        self.source, self.answers = source, answers
        self.spec, self.labels, self.classes = source.spec, source.labels, source.classes

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def read(self, i: int) -> Sample:
        """Return sample `i`."""
        return self.source.read(i)

    def name(self, i: int) -> str:
        """Return the name of sample `i`."""
        return self.source.name(i)

    def stand_ins(self, i: int) -> tuple[int, int]:
        """Return the samples of which one may take the place of a damaged sample `i`."""
        return self.source.stand_ins(i)

    def tokens(self, seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """Return the texts of these samples."""
        return self.source.tokens(seed, epoch, index_B)

    def targets(self, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Return what is known of these samples, the teacher's answers among it.

        Raises:
            DataError: for a sample about which the teacher could not be asked.
        """
        rows = self.answers.rows(index_B)
        for name, x in rows.items():
            if np.isnan(x.reshape(len(x), -1)[:, :1]).any():
                lost = int(index_B[np.isnan(x.reshape(len(x), -1)[:, 0])][0])
                raise DataError(
                    f"there is no {name} of '{self.name(lost)}': it could not be read when the teacher was asked, and "
                    f"now it can. Remove the folder {self.answers.place} and resume the run."
                )
        return {**self.source.targets(index_B), **rows}

    @cached_property
    def layout(self) -> Layout:
        """Channels and depth of the source."""
        return self.source.layout

    @property
    def fingerprint(self) -> str:
        """Unchanged: the images are the same."""
        return self.source.fingerprint


def file_of(place: Path, name: str, part: int) -> Path:
    """Return the file with a part of an array."""
    return place / f"{name.replace(':', '-')}.{part}.f32"


def share_of(world: World, count: int) -> tuple[int, int]:
    """Return (first, end) of the images about which this process asks."""
    return count * world.rank // world.size, count * (world.rank + 1) // world.size


@torch.no_grad()
def _ask(teacher: nn.Module, stepper: Stepper, source: Source, view: View, rows: int, place: Path, key: str) -> None:
    """Write this process's part: its images in order, a row of NaN for each that is damaged."""
    first, end = share_of(stepper.world, len(source))
    part = _Part(place, stepper.world.rank, f"{key} of {stepper.world.size}")
    done = part.reopen()
    own = source.subset(np.arange(first, end))
    config = stepper.config
    for batch in sweep(own, view, batch_size=rows, workers=config.workers, bad_limit=config.data.bad_limit, first=done):
        images = stepper.prepared(filled(batch, rows)).views[view.name][0]
        with stepper.precision.autocast():
            said: dict[str, Tensor] = teacher(images)
        start = int(batch.index_B[0]) // rows * rows
        stop = min(start + rows, len(own))
        for name, x in said.items():
            block = np.full((stop - done, *x.shape[1:]), np.nan, np.float32)
            block[batch.index_B.numpy() - done] = x[: len(batch)].float().cpu().numpy()
            part.append(name, block)
        done = stop
        part.note(done)
    if done < len(own):  # none of the last ones can be read
        for name, shape in part.shapes.items():
            part.append(name, np.full((len(own) - done, *shape), np.nan, np.float32))
    part.note(len(own), last=True)


def filled(batch: Batch, rows: int) -> Batch:
    """Return the batch with its last image repeated up to `rows`: kernels may round by the size of a batch."""
    if len(batch) == rows:
        return batch
    again = torch.arange(rows).clamp(max=len(batch) - 1)
    views = {name: x[:, again] for name, x in batch.views.items()}
    return replace(batch, views=views, index_B=batch.index_B[again], labels_B=None, targets={}, tokens={})


class _Part:
    """The arrays that one process writes, and a note of how far it is."""

    def __init__(self, place: Path, rank: int, key: str) -> None:
        self.place, self.rank, self.key = place, rank, key
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.noted = time.monotonic()
        self._note = place / f"part.{rank}.json"

    def reopen(self) -> int:
        """Return how many rows are there already; what was written after the last note is cut off."""
        try:
            state = json.loads(self._note.read_text(encoding="utf-8"))
            shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
            done = int(state["done"]) if state["key"] == self.key else 0
            for name, shape in shapes.items():
                path, size = file_of(self.place, name, self.rank), 4 * math.prod(shape) * done
                if done and path.stat().st_size < size:
                    done = 0
                os.truncate(path, 4 * math.prod(shape) * done)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            done = 0
        if done:
            self.shapes = shapes
            return done
        for path in self._own_files():
            path.unlink()
        return 0

    def append(self, name: str, block: Floats) -> None:
        """Write rows behind those that are there."""
        self.shapes[name] = block.shape[1:]
        with self._explained():
            self.place.mkdir(parents=True, exist_ok=True)
            with open(file_of(self.place, name, self.rank), "ab") as file:
                file.write(np.ascontiguousarray(block).data)

    def note(self, done: int, *, last: bool = False) -> None:
        """Note every few seconds how many rows there are, after they are on the disk."""
        if not last and time.monotonic() - self.noted < KEEP_SECONDS:
            return
        with self._explained():
            for name in self.shapes:
                with open(file_of(self.place, name, self.rank), "rb+") as file:
                    os.fsync(file.fileno())
        state = {"key": self.key, "done": done, "shapes": self.shapes}
        write_aside(self._note, json.dumps(state).encode())
        self.noted = time.monotonic()

    def _own_files(self) -> Iterator[Path]:
        yield from self.place.glob(f"*.{self.rank}.f32")
        yield from self.place.glob(f"part.{self.rank}.json")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.place}: the teacher's answers cannot be written ({error.strerror or error}). Free space and "
                "resume the run, or ask the teacher anew each time (--method.keep-answers False)."
            ) from error


def _complete(place: Path, key: str, world: World) -> None:
    """Note that all parts are there."""
    parts = [json.loads((place / f"part.{rank}.json").read_text(encoding="utf-8")) for rank in range(world.size)]
    starts = [0, *np.cumsum([part["done"] for part in parts]).tolist()]
    shapes: dict[str, list[int]] = next((part["shapes"] for part in parts if part["shapes"]), {})
    write_aside(place / "answers.json", json.dumps({"key": key, "starts": starts, "shapes": shapes}).encode())
