"""What a checkpoint holds, and how it is put back. Schedules and randomness need nothing: they follow from the step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from imprint.core.codec import to_json
from imprint.core.errors import CheckpointError
from imprint.core.progress import Progress
from imprint.train.begin import identity
from imprint.train.checkpoint import Checkpoint
from imprint.train.config import RunConfig
from imprint.train.optim import load_optimizer, optimizer_tensors
from imprint.train.runlog import RunLog
from imprint.train.sharded import ShardedOptimizer, gathered
from imprint.train.step import Stepper


def tensors_of(stepper: Stepper) -> dict[str, dict[str, Tensor]]:
    """Return weights and buffers (`model`) and the optimizer's state (`optimizer`), whole on the main process.

    Every process must call it: where the optimizer is sharded, each sends its part.
    """
    optimizer = optimizer_tensors(stepper.optimizer)
    if isinstance(stepper.optimizer, ShardedOptimizer):
        optimizer = gathered(optimizer, main=stepper.world.main)
    return {"model": stepper.method.state_dict(), "optimizer": optimizer}


def snapshot(config: RunConfig, stepper: Stepper, log: RunLog, t: Progress, best: float | None) -> dict[str, Any]:
    """Return what a checkpoint holds besides tensors."""
    scaler = stepper.precision.scaler
    return {
        "step": t.step,
        "total_steps": t.total_steps,
        "steps_per_epoch": t.steps_per_epoch,
        "world": stepper.world.size,
        "elapsed": log.elapsed,
        "best": best,
        "window": log.window(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "identity": identity(config),
        "config": to_json(config),
    }


def restore(checkpoint: Checkpoint, stepper: Stepper) -> None:
    """Put weights, buffers, optimizer and loss scale back.

    Raises:
        CheckpointError: when they do not fit the method.
    """
    try:
        stepper.method.load_state_dict(checkpoint.tensors("model"))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit this method and encoder: {error}") from error
    load_optimizer(stepper.optimizer, checkpoint.tensors("optimizer"))
    if stepper.precision.scaler is not None and checkpoint.state.get("scaler"):
        stepper.precision.scaler.load_state_dict(checkpoint.state["scaler"])
