"""The one loop of every protocol that trains: schedule, mixed precision, averaged weights, progress that is kept.

It is deliberately plain (one process, one optimizer); pretraining has its own trainer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imprint.core.errors import HealthError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.core.schedules import Schedule
from imprint.evals.workspace import Workspace
from imprint.nn.ema import ema_update_, frozen_copy


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how.

    Attributes:
        name: of this training in its workspace, and in messages.
        steps: optimizer steps in all.
        per_epoch: steps of one pass, for the schedule and the curve.
        lr: rate over time; a parameter group's `lr_scale` multiplies it.
        clip: largest norm of the gradient, 0 for any.
        ema: momentum of averaged weights, which are then returned; 0 for none.
        seed: torch's generator is set by (seed, name, step) before each step, so a resumed training repeats it.
    """

    name: str
    steps: int
    per_epoch: int
    lr: Schedule
    clip: float = 0.0
    ema: float = 0.0
    seed: int = 0


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int, int], Iterable[Any]],
    loss_of: Callable[[Any, int], Tensor | Iterable[Tensor]],
    plan: Plan,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workspace: Workspace | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train `model` in place, from where a killed training of the same workspace was.

    Args:
        model: on its device, in training mode.
        optimizer: over the model's parameters; groups may carry `lr_scale`.
        batches: `batches(first, last)` gives the batches of steps first to last - 1, always the same for a step
            (`Loader.batches` does).
        loss_of: `loss_of(batch, step)` returns the loss of a batch as a scalar tensor, under autocast of `dtype`; or
            yields terms of it, each of which goes backward, and frees its memory, before the next is asked for.
        plan: length, schedule and the like.
        device: where the model is.
        dtype: of autocast; float16 scales the loss.
        workspace: where progress is kept; None keeps none.

    Returns:
        The model to judge (the averaged one with `ema`) and the mean loss of every epoch.

    Raises:
        HealthError: when the loss of an epoch is not finite.
    """
    workspace = workspace or Workspace(None)
    averaged = frozen_copy(model) if plan.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    running = torch.zeros((), device=device)
    curve: list[float] = []
    first = 0
    found = workspace.load_state(plan.name)
    if found is not None:
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        scaler.load_state_dict(found["scaler"])
        if averaged is not None:
            averaged.load_state_dict(found["averaged"])
        first, curve = int(found["step"]), list(found["curve"])
        running += float(found["running"])

    def keep(step: int) -> None:
        workspace.save_state(
            plan.name,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "averaged": averaged.state_dict() if averaged is not None else {},
                "step": step,
                "curve": curve,
                "running": float(running),
            },
        )

    kept = time.monotonic()
    for step, batch in enumerate(batches(first, plan.steps), start=first):
        t = Progress(step=step, total_steps=plan.steps, steps_per_epoch=plan.per_epoch)
        torch.manual_seed(seed_of(plan.seed, plan.name, step))
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(t) * group.get("lr_scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        for loss in _terms(loss_of, batch, step, device, dtype):
            scaler.scale(loss).backward()
            running += loss.detach()
            del loss
        if plan.clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], plan.clip)
        scaler.step(optimizer)
        scaler.update()
        if averaged is not None:
            ema_update_(averaged, model, plan.ema)
        if (step + 1) % plan.per_epoch == 0:
            curve.append(round(float(running) / plan.per_epoch, 5))
            running.zero_()
            if not math.isfinite(curve[-1]):
                raise HealthError(
                    f"the {plan.name} training diverged in epoch {len(curve)} of {plan.steps // plan.per_epoch}; "
                    "use a lower --lr or --clip 1."
                )
        if time.monotonic() - kept > workspace.every or step + 1 == plan.steps:
            keep(step + 1)
            kept = time.monotonic()
    if averaged is None:
        return model, curve
    # The average was never run, so what layers count while they run (BatchNorm's statistics) is the trained one's.
    for kept_buffer, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
        kept_buffer.copy_(buffer)
    return averaged, curve


def _terms(
    loss_of: Callable[[Any, int], Tensor | Iterable[Tensor]],
    batch: Any,
    step: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Yield the terms of a step's loss, computed under autocast; what is done with them is outside of it."""
    terms: Iterator[Tensor] | None = None
    while True:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if terms is None:
                loss = loss_of(batch, step)
                terms = iter((loss,)) if isinstance(loss, Tensor) else iter(loss)
            term = next(terms, None)
        if term is None:
            return
        yield term
        del term
