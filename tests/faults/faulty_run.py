"""A small run in a process of its own, for the tests that kill it; also what they compare it with."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

STEPS = 60


def go(method: str, data: str, out: str, how: str = "fresh", devices: str = "1", stream: str = "off") -> None:
    """Train from the beginning or resume."""
    from imprint.core.progress import Steps
    from imprint.recipes.book import stages_of
    from imprint.train.entry import pretrain_run

    torch.set_num_threads(1)
    stages = tuple(
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, train=(data,), stream=stream, window=64),
            length=Steps(STEPS),
            checkpoint_every=Steps(7),
            log_every=2,
            workers=1,
            device="cpu",
            devices=int(devices),
        )
        for config in stages_of(f"{method}/debug")
    )
    plan = stages if len(stages) > 1 else stages[0]
    pretrain_run(None if how == "resume" else plan, out, resume=how == "resume")


def start(*args: object) -> subprocess.Popen[bytes]:
    """Start `go(*args)` in a process group of its own."""
    return subprocess.Popen([sys.executable, __file__, *map(str, args)], stderr=subprocess.PIPE, start_new_session=True)


def write_images(path: Path, classes: int = 0) -> Path:
    """Write 48 images of noise, with labels when there are classes."""
    rng = np.random.default_rng(0)
    labels = {"labels": np.arange(48) % classes} if classes else {}
    np.savez(path, images=rng.integers(0, 255, (48, 32, 32, 3), dtype=np.uint8), **labels)
    return path


def steps_written(run: Path) -> list[int]:
    """Return the steps of the whole loss lines in the metrics, while the run may be writing."""
    path = run / "metrics.jsonl"
    steps = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:  # the line that is being written
            continue
        if "loss" in found:
            steps.append(found["step"])
    return steps


def wait_for(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = steps_written(run)
        if steps and steps[-1] >= step:
            return
        time.sleep(0.002)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return weights, buffers and optimizer state at the end."""
    from imprint.train.run import Run

    found = Run.open(run).checkpoints.latest()
    assert found is not None
    assert found.step == STEPS
    return {f"{g}:{k}": v for g in ("model", "optimizer") for k, v in found.tensors(g).items()}


if __name__ == "__main__":
    go(*sys.argv[1:])
