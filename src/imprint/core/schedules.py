"""Values that change during a run, as data: a Schedule is evaluated at a Progress and holds no state.

The shapes and their small conventions are those of the public code of the papers (tests/parity, case `schedules`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from imprint.core.progress import Duration, Progress, Steps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    r"""A scalar as a function of Progress: freeze, then linear warm-up, then the shape from `start` to `end`.

    With s the step, w the warm-up, f the freeze, T the (stretched) length of the run and u = (s - f - w)/(T - f - w):

    - `cosine`: end + (start - end) (1 + cos(pi u)) / 2  (SGDR, arXiv 1608.03983, Eq. 5, one period)
    - `linear`: start + (end - start) u
    - `constant`: start
    - `milestones`: start * gamma^(number of milestones passed)

    Attributes:
        start: value after the warm-up.
        end: value that the shape approaches at u = 1; kept after it.
        shape: one of the four above.
        warmup: length of the linear warm-up.
        warmup_from: value at the first warm-up step.
        warmup_reaches_start: the last warm-up step already has `start` (DINO's np.linspace), instead of the step after.
        freeze: length of an initial stretch at 0 (DINOv2).
        stretch: T is the run's length times this (MSN and I-JEPA: 1.25, the schedule is cut off before its end).
        counted_from: added to the step (I-JEPA's and MSN's counters start at 1).
        per_epoch: evaluate once an epoch on the epoch's index (DINO's teacher temperature).
        milestones: when to multiply by gamma.
        gamma: factor at each milestone.
    """

    start: float
    end: float = 0.0
    shape: Literal["cosine", "linear", "constant", "milestones"] = "cosine"
    warmup: Duration = Steps(0)
    warmup_from: float = 0.0
    warmup_reaches_start: bool = False
    freeze: Duration = Steps(0)
    stretch: float = 1.0
    counted_from: int = 0
    per_epoch: bool = False
    milestones: tuple[Duration, ...] = ()
    gamma: float = 0.1

    def __call__(self, t: Progress) -> float:
        """Return the value at `t`."""
        if self.per_epoch:
            t = t.by_epoch()
        step = t.step + self.counted_from
        freeze = t.steps(self.freeze)
        if step < freeze:
            return 0.0
        warmup = t.steps(self.warmup)
        if step - freeze < warmup:
            span = max(1, warmup - 1) if self.warmup_reaches_start else warmup
            return self.warmup_from + (self.start - self.warmup_from) * (step - freeze) / span
        if self.shape == "constant":
            return self.start
        if self.shape == "milestones":
            return self.start * self.gamma ** sum(step >= t.steps(m) for m in self.milestones)
        total = t.total_steps * self.stretch
        if self.shape == "cosine":
            total = int(total)  # I-JEPA's code rounds the cosine's length down, and not the straight line's
        length = total - freeze - warmup
        u = min(1.0, (step - freeze - warmup) / max(1, length))
        if self.shape == "linear":
            return self.start + (self.end - self.start) * u
        return self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * u))

    def scaled(self, factor: float) -> Schedule:
        """Return the schedule with all its values multiplied by `factor` (batch-size scaling of a learning rate)."""
        from dataclasses import replace

        return replace(self, start=self.start * factor, end=self.end * factor, warmup_from=self.warmup_from * factor)


def constant(value: float) -> Schedule:
    """Return the schedule that is `value` throughout."""
    return Schedule(start=value, end=value, shape="constant")


def cosine(start: float, end: float, *, warmup: Duration = Steps(0), warmup_from: float = 0.0) -> Schedule:
    """Return linear warm-up followed by half a cosine from `start` to `end`."""
    return Schedule(start=start, end=end, shape="cosine", warmup=warmup, warmup_from=warmup_from)


def linear(start: float, end: float) -> Schedule:
    """Return the straight line from `start` to `end` over the run."""
    return Schedule(start=start, end=end, shape="linear")
