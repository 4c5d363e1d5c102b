"""How a run starts: a fresh folder, or the configuration and the last whole checkpoint of one that stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.core.codec import to_json
from imprint.core.errors import CheckpointError, ConfigError
from imprint.core.progress import Duration, Epochs, Progress, Steps
from imprint.dist.collectives import broadcast_object
from imprint.dist.world import World
from imprint.train.checkpoint import Checkpoint, Checkpoints
from imprint.train.config import RunConfig
from imprint.train.run import read_config

IDENTITY = ("name", "method", "encoder", "optim", "batch_size", "seed")
"""What a checkpoint's weights and optimizer state depend on; a resumed run must agree in these."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        config: what to do.
        checkpoint: where to go on from, or None at the beginning.
        notes: what the user should know.
    """

    config: RunConfig
    checkpoint: Checkpoint | None
    notes: tuple[str, ...]


def require_divisible(config: RunConfig, world: World) -> None:
    """Refuse a batch that does not split over the processes that are really there.

    Raises:
        ConfigError: naming the multiple to use.
    """
    share = world.size * config.accumulate
    if config.batch_size % share:
        raise ConfigError(
            f"batch size {config.batch_size} does not split over {world.size} processes x {config.accumulate} "
            f"accumulation steps; use a multiple of {share}."
        )


def begin(config: RunConfig | None, folder: Path, world: World, *, resume: bool) -> Start:
    """Settle where to start; every process returns the same.

    Nothing is written yet, so that a run that cannot start leaves nothing behind. A resumed one takes the folder's
    `config.json` and the newest checkpoint that is whole.

    Raises:
        ConfigError: for a folder that already holds a run, one that holds none, or another configuration than its own.
        CheckpointError: when there are checkpoints and none is whole, or it is of another configuration.
    """
    if not resume:
        if config is None:
            raise ConfigError("a new run needs a configuration.")
        if broadcast_object(world.main and (folder / "config.json").exists()):
            raise ConfigError(
                f"{folder} already holds a run. Continue it with: imprint pretrain --resume {folder}, or choose "
                "another --out."
            )
        return Start(config, None, ())
    stored = read_config(folder / "config.json")
    if config is not None:
        require_same(identity(config), identity(stored), f"{folder} was started with another configuration")
    checkpoints = Checkpoints(folder / "checkpoints", stored.keep)
    # Only the main process verifies checksums; the others open what it found.
    found = checkpoints.latest() if world.main else None
    step, problems = broadcast_object((found.step if found else None, tuple(checkpoints.problems)))
    if step is None:
        return Start(stored, None, ("there is no checkpoint yet; starting from the beginning.",))
    checkpoint = found or Checkpoint(step, checkpoints.path(step), read_state(checkpoints.path(step)))
    require_same(checkpoint.state["identity"], identity(stored), f"{checkpoint.path} is of another configuration")
    notes = tuple(f"{problem} Falling back to step {step}." for problem in problems)
    if checkpoint.state.get("world") != world.size:
        notes += (
            f"the checkpoint was written by {checkpoint.state.get('world')} processes and {world.size} go on: the same "
            "images follow, but sums over processes round differently.",
        )
    return Start(stored, checkpoint, notes)


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the part of a configuration that weights and optimizer state depend on, and its digest."""
    data = to_json(config)
    part = {name: data[name] for name in IDENTITY}
    digest = hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
    return {**part, "digest": digest}


def require_same(first: dict[str, Any], second: dict[str, Any], problem: str) -> None:
    """Refuse two identities that differ.

    Raises:
        CheckpointError: naming the fields that differ.
    """
    if first["digest"] == second["digest"]:
        return
    differ = ", ".join(f"{name}: {a!r} and {b!r}" for name, a, b in differences("", first, second) if name != "digest")
    raise CheckpointError(f"{problem} ({differ}). Start a new run with --out, or put config.json back as it was.")


def differences(where: str, first: Any, second: Any) -> list[tuple[str, Any, Any]]:
    """Return (dotted name, value, value) wherever two JSON values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            found
            for key in sorted({*first, *second})
            for found in differences(f"{where}.{key}".lstrip("."), first.get(key), second.get(key))
        ]
    return [] if first == second else [(where, first, second)]


def extended(config: RunConfig, done: int, clock: Progress, extend: Duration) -> RunConfig:
    """Return the configuration of a finished run that goes on for `extend`: schedules run over the whole new length.

    Raises:
        ConfigError: when the run is not finished, or nothing is added.
    """
    if done < clock.total_steps:
        raise ConfigError(
            f"the run stands at step {done} of {clock.total_steps}; finish it first (imprint pretrain --resume RUN), "
            "then extend it."
        )
    if clock.steps(extend) < 1:
        raise ConfigError(f"extending by {extend} adds no step.")
    if isinstance(config.length, Epochs) and isinstance(extend, Epochs):
        return dataclasses.replace(config, length=Epochs(config.length.n + extend.n))
    return dataclasses.replace(config, length=Steps(clock.total_steps + clock.steps(extend)))
