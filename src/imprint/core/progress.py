"""Durations in the units people use, and the one clock of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from imprint.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Epochs:
    """A duration in passes over the training data; fractions allowed."""

    n: float

    def __str__(self) -> str:
        return f"{self.n:g}ep"


@dataclass(frozen=True, slots=True)
class Steps:
    """A duration in optimizer steps."""

    n: int

    def __str__(self) -> str:
        return f"{self.n}st"


Duration = Epochs | Steps


def parse_duration(text: str) -> Duration:
    """Read `30ep` as Epochs(30) and `500st` as Steps(500).

    Raises:
        ConfigError: when `text` is neither form.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(ep|epochs?|st|steps?)\s*", text)
    if match is None:
        raise ConfigError(f"'{text}' is not a duration; write epochs as 30ep or optimizer steps as 500st.")
    number, unit = match.groups()
    if unit.startswith("ep"):
        return Epochs(float(number))
    if not float(number).is_integer():
        raise ConfigError(f"'{text}': steps are whole numbers.")
    return Steps(int(float(number)))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `step` optimizer steps are done out of `total_steps`.

    Everything that changes during training (learning rate, EMA momentum, temperatures, freezing) is a pure function
    of this value, so a resumed run needs no schedule state.
    """

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Index of the running epoch, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.step / max(1, self.total_steps)

    def steps(self, duration: Duration) -> int:
        """Convert a duration to optimizer steps of this run."""
        if isinstance(duration, Steps):
            return duration.n
        return round(duration.n * self.steps_per_epoch)

    def before(self, duration: Duration) -> bool:
        """Tell whether this step lies within the first `duration` of the run."""
        return self.step < self.steps(duration)

    def every(self, duration: Duration) -> bool:
        """Tell whether a whole number of `duration`s has just passed (never at step 0)."""
        period = max(1, self.steps(duration))
        return self.step > 0 and self.step % period == 0

    def at(self, step: int) -> Progress:
        """Return the same run at another step."""
        return Progress(step, self.total_steps, self.steps_per_epoch)

    def by_epoch(self) -> Progress:
        """Return this clock counted in whole epochs, for the values that public code keeps constant within an epoch."""
        total = -(-self.total_steps // self.steps_per_epoch)
        return Progress(self.epoch, total, 1)
