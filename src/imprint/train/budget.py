"""A run that ends on time: measure the first steps, then fix the number of steps and fit every schedule into it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any, TypeVar

import torch

from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch
from imprint.dist.collectives import broadcast_object
from imprint.train.config import OptimConfig, RunConfig
from imprint.train.step import Stepper

WARMUP_STEPS = 2
MOST_SECONDS, SHARE = 10.0, 0.05
RESERVE_SHARE = 0.02
PROBE_SHARE = 0.1
WARMUP_SHARE = 0.05

T = TypeVar("T")


def measure(stepper: Stepper, batches: Iterable[Batch], clock: Progress, budget: float) -> float:
    """Return the seconds of a step, from real steps on real batches, and put weights and optimizer back as they were.

    The first two steps (compilation, caches, filling the loader's queue) are not timed. Timing takes 10 s or 5 % of the
    budget, whichever is less, and at least two steps. The steps are taken back so that the run is still a pure
    function of its configuration: the resolved one, with the number of steps fixed, repeats it to the bit.
    """
    before = {name: value.detach().clone() for name, value in stepper.method.state_dict().items()}
    window = min(MOST_SECONDS, SHARE * budget)
    timed: list[float] = []
    last = time.perf_counter()
    for step, batch in enumerate(batches):
        stepper(batch, clock.at(min(step, clock.total_steps - 1)))
        _wait(stepper.world.device)
        now = time.perf_counter()
        if step >= WARMUP_STEPS:
            timed.append(now - last)
        last = now
        if broadcast_object(len(timed) >= 2 and sum(timed) >= window):
            break
    stepper.guard.settle()
    stepper.method.load_state_dict(before)
    stepper.optimizer.state.clear()
    stepper.optimizer.zero_grad(set_to_none=True)
    stepper.precision.reset_scaler()
    return broadcast_object(sum(timed) / len(timed))


def fitted(
    config: RunConfig, clock: Progress, *, budget: float, spent: float, step_seconds: float, probe_seconds: float
) -> RunConfig:
    """Return the configuration with its length fixed so that the run ends `budget` seconds after it began.

    Held back: 2 % of the budget for the last checkpoint, the encoder and the report, and the probes, which get at
    most a tenth of it. When the run becomes shorter than the recipe's length, all durations of the optimizer and the
    method (warm-ups, freezes, temperature ramps) and the probes' cadence shrink by the same factor, so that each keeps
    its share of the run; none is stretched when it becomes longer.

    Args:
        config: with a budget.
        clock: the recipe's own length.
        budget: seconds in all.
        spent: seconds since the run began.
        step_seconds: what a step costs.
        probe_seconds: what a probe costs; 0 without probes.

    Raises:
        ConfigError: when not even one step fits.
    """
    left = budget * (1.0 - RESERVE_SHARE) - spent
    probes = 0.0
    if config.probe_every is not None and probe_seconds > 0:
        wanted = max(1, clock.total_steps // max(1, clock.steps(config.probe_every)))
        probes = min(wanted, max(1.0, PROBE_SHARE * budget // probe_seconds))
        left -= probes * probe_seconds
    total = int(left / step_seconds)
    if total < 1:
        raise ConfigError(
            f"a budget of {budget:.0f} s does not hold one step after starting ({spent:.1f} s gone, "
            f"{step_seconds:.2f} s a step). Give more time, a smaller encoder or a smaller batch."
        )
    ratio = min(1.0, total / clock.total_steps)
    return dataclasses.replace(
        config,
        length=Steps(total),
        budget=None,
        optim=_warmed(shrunk(config.optim, ratio), clock.steps(config.optim.lr.warmup), clock, total),
        method=shrunk(config.method, ratio),
        probe_every=Steps(max(1, int(total / probes))) if probes else config.probe_every,
    )


def shrunk(value: T, ratio: float) -> T:
    """Return a configuration with every duration in it, at any depth, multiplied by `ratio`."""
    if ratio == 1.0:
        return value
    result: Any = value
    if isinstance(value, Epochs):
        result = Epochs(value.n * ratio)
    elif isinstance(value, Steps):
        result = Steps(round(value.n * ratio))
    elif isinstance(value, tuple):
        result = tuple(shrunk(v, ratio) for v in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: shrunk(getattr(value, f.name), ratio) for f in dataclasses.fields(value) if f.init}
        result = dataclasses.replace(value, **fields)
    narrowed: T = result
    return narrowed


def _warmed(optim: OptimConfig, wanted: int, clock: Progress, total: int) -> OptimConfig:
    """Return the optimizer's settings with a warm-up of at least a twentieth of `total` steps, at most `wanted`."""
    least = min(wanted, round(WARMUP_SHARE * total))
    if clock.steps(optim.lr.warmup) >= least:
        return optim
    return dataclasses.replace(optim, lr=dataclasses.replace(optim.lr, warmup=Steps(least)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
