"""What a killed evaluation needs to go on: results of parts and states of trainings, in the user's cache, by content.

The folder's name is a hash of everything that determines the result (protocol, weights, configuration, data, release),
so the same command finds it again and another never does. A finished evaluation removes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imprint.backbones.stored import write_aside
from imprint.core.errors import CheckpointError
from imprint.data.compact import cache_dir
from imprint.evals.feature_cache import weights_digest
from imprint.evals.protocol import label_digest

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.evals.protocol import EvalData, ProtocolConfig

FORMAT = 1
STALE_SECONDS = 30 * 24 * 3600
WITHOUT_EFFECT = ("batch_size", "workers", "cache", "checkpoint_every")
"""Options that change how fast a result comes, not which."""


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A folder of parts that are done and of trainings that are not.

    Attributes:
        folder: where it is, or None to keep nothing (`cache=False`).
        every: seconds between two checkpoints of a training.
    """

    folder: Path | None
    every: float = 60.0

    @classmethod
    def open(cls, protocol: str, encoder: Encoder, data: EvalData, config: ProtocolConfig) -> Workspace:
        """Return the workspace of an evaluation, with what an earlier, killed one left there.

        Every data object gives `fingerprint` (content) and a length.
        """
        if not config.cache:
            return cls(None)
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in WITHOUT_EFFECT}
        parts = {
            "format": FORMAT,
            "release": version("imprint"),
            "protocol": protocol,
            "weights": weights_digest(encoder),
            "encoder": [type(encoder).__name__, encoder.config],
            "settings": settings,
            "data": [_content(data.train), _content(data.test)],
            "normalise": repr(data.normalise),
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        root = cache_dir() / "evaluations"
        _sweep(root)
        return cls(root / hashlib.blake2b(text.encode(), digest_size=20).hexdigest(), config.checkpoint_every)

    def part(self, name: str) -> Workspace:
        """Return a workspace inside this one, for a part that has trainings and results of its own."""
        return self if self.folder is None else Workspace(self.folder / _file_name(name), self.every)

    def recall(self, name: str) -> Any:
        """Return the result of a part that was remembered, or None."""
        if self.folder is None:
            return None
        try:
            return json.loads((self.folder / f"{_file_name(name)}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def remember(self, name: str, result: Any) -> None:
        """Keep the JSON-ready result of a part."""
        if self.folder is None:
            return
        path, content = self.folder / f"{_file_name(name)}.json", (json.dumps(result) + "\n").encode()
        try:
            write_aside(path, content)
        except CheckpointError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            write_aside(path, content)  # the same evaluation, run twice at once, was done and cleared the folder

    def load_state(self, name: str) -> dict[str, Any] | None:
        """Return the state of a training, on the CPU, or None; a damaged file counts as none."""
        if self.folder is None:
            return None
        try:
            state = torch.load(self.folder / f"{_file_name(name)}.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        return state if isinstance(state, dict) else None

    def save_state(self, name: str, state: dict[str, Any]) -> None:
        """Keep the state of a training: tensors, numbers, strings, lists and dictionaries.

        Raises:
            CheckpointError: when the disk is full or refuses; the state before stays.
        """
        if self.folder is None:
            return
        path = self.folder / f"{_file_name(name)}.pt"
        try:
            try:
                _write_state(path, state)
            except FileNotFoundError:  # see `remember`
                _write_state(path, state)
        except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
            raise CheckpointError(
                f"{path}: cannot be written ({error}). Free space, set IMPRINT_CACHE to another folder, or give "
                "--no-cache to keep no progress."
            ) from error

    def clear(self) -> None:
        """Remove everything: the evaluation is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _write_state(path: Path, state: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()  # gone when all went well


def _content(data: Any) -> Any:
    if data is None:
        return None
    if isinstance(data, (list, tuple)):
        return [_content(part) for part in data]
    return [data.fingerprint, len(data), label_digest(data)]


def _file_name(name: str) -> str:
    """Return a name that every file system takes; names that had to change get a hash, so that they stay distinct."""
    plain = re.sub(r"[^A-Za-z0-9_.=-]", "_", name)[:80]
    return plain if plain == name else f"{plain}-{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"


def _sweep(root: Path) -> None:
    """Remove what nobody has gone on with for a month."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
