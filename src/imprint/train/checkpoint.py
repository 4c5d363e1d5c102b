"""Checkpoints: written aside, flushed, summed and renamed, so that a crash at any moment leaves whole ones only.

A checkpoint is a folder `step-00001234/` with one safetensors file per group of tensors (`model`, `optimizer`),
`state.json`, and `manifest.json` holding the SHA-256 of each; reading one executes no pickle.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from imprint.core.errors import CheckpointError
from imprint.train.tensorfile import read_tensors, sha256_of, write_tensors

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers by which a system says that no more can be written."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole, verified checkpoint.

    Attributes:
        step: optimizer steps done when it was written.
        path: its folder.
        state: what `state.json` holds.
    """

    step: int
    path: Path
    state: dict[str, Any]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Read one group of tensors (`model`, `optimizer`) onto the CPU.

        Raises:
            CheckpointError: when the group is absent or unreadable.
        """
        file = self.path / f"{group}.safetensors"
        try:
            return read_tensors(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}.") from error


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: where they lie.
        keep: how many of the newest stay; the best one stays besides.
        problems: what was found damaged by `latest`, in words.
    """

    folder: Path
    keep: int = 2
    problems: list[str] = field(default_factory=list)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d{8,})", entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint, or None when none was marked."""
        try:
            return int(json.loads((self.folder / "best.json").read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, best: bool = False
    ) -> Path:
        """Write a checkpoint and remove those that need not stay.

        The old ones are removed only after the new one is whole on the disk.

        Args:
            step: optimizer steps done.
            tensors: groups of named tensors, one file each.
            state: JSON-ready values.
            best: mark this one as the best so far.

        Raises:
            CheckpointError: when the disk is full or refuses; earlier checkpoints are intact.
        """
        target, aside = self.path(step), self.folder / f".writing-{step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            aside.mkdir()
            manifest = {
                f"{group}.safetensors": write_tensors(aside / f"{group}.safetensors", named, {"format": "pt"})
                for group, named in tensors.items()
            }
            write_text(aside / "state.json", json.dumps(dict(state), indent=1))
            manifest["state.json"] = sha256_of(aside / "state.json")
            write_text(aside / "manifest.json", json.dumps(manifest, indent=1))
            sync_folder(aside)
            if target.exists():  # the same step again, after a resume from an earlier one
                target.rename(self.folder / f".old-{step:08d}")
            aside.rename(target)
            sync_folder(self.folder)
            if best:
                replace_text(self.folder / "best.json", json.dumps({"step": step}))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._sweep()
            raise self._refused(step, error) from error
        self._prune()
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None when there is none at all.

        Damaged ones are passed over and named in `problems`.

        Raises:
            CheckpointError: when there are checkpoints and none is whole.
        """
        self.problems.clear()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                self.problems.append(str(error))
        if steps:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.folder} is whole: " + " ".join(self.problems)
            )
        return None

    def load(self, step: int) -> Checkpoint:
        """Verify and open the checkpoint of one step.

        Raises:
            CheckpointError: when it is missing or damaged.
        """
        path = self.path(step)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            for name, expected in manifest.items():
                if sha256_of(path / name) != expected:
                    raise CheckpointError(f"checkpoint {path.name} is damaged: {name} does not match its checksum.")
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"checkpoint {path.name} is damaged: {error}.") from error
        return Checkpoint(step, path, state)

    def last_words(self) -> str:
        """Return a sentence on the newest checkpoint, for errors."""
        kept = self.steps()
        if not kept:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is that of step {kept[-1]}: {self.path(kept[-1])}."

    def _prune(self) -> None:
        stay = {*self.steps()[-max(1, self.keep) :], self.best_step}
        for step in self.steps():
            if step not in stay:
                shutil.rmtree(self.path(step), ignore_errors=True)
        self._sweep()

    def _sweep(self) -> None:
        for left in (*self.folder.glob(".writing-*"), *self.folder.glob(".old-*")):
            shutil.rmtree(left)

    def _refused(self, step: int, error: OSError) -> CheckpointError:
        kept = self.steps()
        last = f"The last checkpoint, of step {kept[-1]}, is intact." if kept else "There is no earlier checkpoint."
        if error.errno in DISK_FULL:
            free = ""
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(self.folder).free / 2**20:.0f} MB free)"
            return CheckpointError(
                f"the disk under {self.folder} is full{free}: the checkpoint of step {step} was not written. {last} "
                "Free some space and continue with: imprint pretrain --resume RUN"
            )
        return CheckpointError(f"the checkpoint of step {step} was not written to {self.folder}: {error}. {last}")


@contextlib.contextmanager
def disk_full_explained(folder: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Turn the system's "no space left" from anything that the body writes into a clear error.

    Raises:
        CheckpointError: saying that the last checkpoint is whole and how to go on.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        kept = checkpoints.steps()
        last = f"the last checkpoint, of step {kept[-1]}, is intact" if kept else "there is no checkpoint yet"
        raise CheckpointError(
            f"the disk under {folder} is full; {last}. Free some space and continue with: "
            f"imprint pretrain --resume {folder}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file and flush it to the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: readers see the old text or the new one, never a part."""
    aside = path.with_name(f".{path.name}.tmp")
    write_text(aside, text)
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system has that notion."""
    with _opened(path) as descriptor:
        if descriptor is not None:
            os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    if os.name == "nt":  # folders cannot be opened there
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
