"""The run on a screen: a live bar on a terminal, plain lines every few seconds otherwise, silence on other ranks."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 15.0
"""How often a run without a terminal says where it stands."""


class Silent:
    """Says nothing: the other processes of a run."""

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` steps."""

    def show(self, line: dict[str, Any]) -> None:
        """Show the newest metrics."""

    def say(self, text: str) -> None:
        """Print a line."""

    def stop(self) -> None:
        """End."""


class Plain(Silent):
    """Lines on stderr, for logs and pipes."""

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` steps."""
        self._total, self._first, self._begun, self._last = total, done, time.monotonic(), time.monotonic()

    def show(self, line: dict[str, Any]) -> None:
        """Print the metrics when the last line is old enough, or the run is at its end."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and line["step"] < self._total:
            return
        self._last = now
        done = line["step"] - self._first
        left = (now - self._begun) / max(1, done) * (self._total - line["step"])
        self.say(f"step {line['step']}/{self._total}  {summary(line)}  {duration(left)} left")

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


class Live(Silent):
    """A bar that moves, drawn by rich."""

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` steps."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("training", total=total, completed=done, now="")

    def show(self, line: dict[str, Any]) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=line["step"], now=summary(line))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """End the bar."""
        self._bar.stop()


def console_for(main: bool) -> Silent:
    """Return what suits this process."""
    if not main:
        return Silent()
    return Live() if sys.stderr.isatty() else Plain()


def summary(line: dict[str, Any]) -> str:
    """Return loss, speed, waiting and memory in one short text."""
    loss = f"loss {line['loss']:.4f}  " if isinstance(line.get("loss"), float) else ""
    return (
        f"{loss}{line['images_per_s']:.0f} samples/s  data wait {100 * line['data_wait']:.0f}%  "
        f"{line['memory_mb'] / 1024:.1f} GB"
    )


def duration(seconds: float) -> str:
    """Return seconds as `1:02:03` or `2:03`."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
