"""What a run says while it goes: JSON lines and TensorBoard in its folder, a live bar or a few lines on the screen."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from imprint.core.progress import Progress
from imprint.dist.collectives import all_reduce_mean
from imprint.dist.world import World
from imprint.train.console import console_for

Json = dict[str, Any]


class RunLog:
    """Collects metrics on the device and writes their means at the log cadence; only the main process writes.

    A line of `metrics.jsonl` has `step`, `epoch`, `time` (seconds of training so far, over all sessions) and values, or
    `event` or `warning` with a text. Means over a window that a checkpoint cuts in two are carried on by the resumed
    run, so its lines are those of an unbroken one but for timings.
    """

    def __init__(self, folder: Path, world: World, *, clock: Progress, elapsed: float = 0.0) -> None:
        self.folder, self.world = folder, world
        self.total = clock.total_steps
        self._file: TextIO | None = None
        self._board: Any = None
        self._started = time.perf_counter() - elapsed
        self._window_started = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._count = 0
        self.console = console_for(world.main)
        if world.main:
            folder.mkdir(parents=True, exist_ok=True)
            cut_lines(folder / "metrics.jsonl", clock.step)
            self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115  # closed in close()
            self._board = _summary_writer(folder / "tensorboard", clock.step)
        self.console.start(self.total, clock.step)

    def begin_at(self, clock: Progress) -> None:
        """Take another length, and forget what came before the first step."""
        self.total = clock.total_steps
        self._sums, self._count, self._images, self._waited = None, 0, 0, 0.0
        self._window_started = time.perf_counter()
        self.console.stop()
        self.console.start(self.total, clock.step)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all sessions of the run."""
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the body as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def add(self, metrics: Mapping[str, Tensor], images: int) -> None:
        """Add one step's 0-d metrics to the window; nothing leaves the device."""
        names = list(metrics)
        values = torch.stack([metrics[name].detach().float() for name in names])
        if self._sums is None or names != self._names:
            self._names, self._sums, self._count = names, values, 1
        else:
            self._sums, self._count = self._sums + values, self._count + 1
        self._images += images

    def window(self) -> Json:
        """Return the sums of the unfinished window for a checkpoint."""
        if self._sums is None:
            return {}
        return {"names": self._names, "sums": self._sums.tolist(), "count": self._count}

    def restore_window(self, state: Mapping[str, Any]) -> None:
        """Carry on the window of a checkpoint."""
        if state:
            self._names, self._count = list(state["names"]), int(state["count"])
            self._sums = torch.tensor(state["sums"], dtype=torch.float32, device=self.world.device)

    def write(self, t: Progress, extra: Mapping[str, float]) -> Json:
        """Write the window's means with speed, waiting and memory, and start the next window.

        The window is from one process; means over processes are exchanged here, the only place where logging talks.
        """
        means: Json = {}
        if self._sums is not None:
            means = dict(zip(self._names, (all_reduce_mean(self._sums) / self._count).tolist(), strict=True))
        now = time.perf_counter()
        seconds = max(1e-9, now - self._window_started)
        line: Json = {
            "step": t.step,
            "epoch": round(t.step / t.steps_per_epoch, 4),
            "time": round(self.elapsed, 3),
            **means,
            **extra,
            "images_per_s": round(self._images / seconds, 2),
            "data_wait": round(min(1.0, self._waited / seconds), 4),
            "memory_mb": round(memory_mb(self.world.device), 1),
        }
        self._put(line)
        self.console.show(line)
        self._sums, self._count, self._images, self._waited = None, 0, 0, 0.0
        self._window_started = now
        return line

    def values(self, t: Progress, values: Mapping[str, float]) -> None:
        """Write values measured at `t` (probes); time spent on them does not count as training speed."""
        self._put(
            {"step": t.step, "epoch": round(t.step / t.steps_per_epoch, 4), "time": round(self.elapsed, 3), **values}
        )
        if self.world.main:
            shown = "  ".join(f"{name.rpartition('/')[2]} {value:.4g}" for name, value in values.items())
            self.console.say(f"step {t.step}: {shown}")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Keep the body (a probe, a checkpoint) out of the speed that is reported."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._window_started += time.perf_counter() - start

    def event(self, t: Progress, text: str, *, kind: str = "event", **details: Any) -> None:
        """Write down and show what happened to the run: `kind` is `event` or `warning`."""
        self._put({"step": t.step, "time": round(self.elapsed, 3), kind: text, **details})
        if self.world.main:
            self.console.say(text if kind == "event" else f"{kind}: {text}")

    def close(self) -> None:
        """Flush and close everything."""
        self.console.stop()
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, line: Json) -> None:
        if self._file is None:
            return
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in line.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name not in ("step", "time") and isinstance(value, (int, float)):
                    self._board.add_scalar(name if "/" in name else f"train/{name}", value, line["step"])


def cut_lines(path: Path, step: int) -> None:
    """Drop the lines after `step` (and a half-written last one), which the resumed run will write again."""
    from imprint.train.checkpoint import replace_text

    if not path.exists():
        return
    kept = [line for line, found in read_lines(path) if found["step"] <= step]
    replace_text(path, "".join(kept))


def read_lines(path: Path) -> Iterator[tuple[str, Json]]:
    """Yield the whole lines of a metrics file, as text and as values."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "step" in found and line.endswith("\n"):
                yield line, found


def memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: what tensors took on a GPU, the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # tensorboard is not installed; the JSON lines hold the same values
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=30)
