"""A run killed with SIGKILL and resumed ends with the weights of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

PROGRAM = """
import dataclasses, sys
import torch
torch.set_num_threads(1)
from imprint.core.progress import Steps
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run

method, data, out, resume, devices = sys.argv[1:6]
config = recipe(f"{method}/debug")
config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, train=(data,)),
    length=Steps(60),
    checkpoint_every=Steps(7),
    log_every=2,
    workers=1,
    device="cpu",
    devices=int(devices),
)
pretrain_run(None if resume == "resume" else config, out, resume=resume == "resume")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 255, (48, 32, 32, 3), dtype=np.uint8))
    return path


def start(method, data, out, how="fresh", devices=1):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, method, str(data), str(out), how, str(devices)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process):
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()


def steps_written(run) -> list[int]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    steps = []
    for line in path.read_text().splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # the line that is being written
            continue
        if "loss" in found:
            steps.append(found["step"])
    return steps


def weights(run):
    from imprint.train.run import Run

    found = Run.open(run).checkpoints.latest()
    assert found.step == 60
    return {f"{g}:{k}": v for g in ("model", "optimizer") for k, v in found.tensors(g).items()}


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_sigkill_at_random_steps_then_resume_gives_equal_weights(tmp_path, data, method):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(method, data, whole))
    rng = np.random.default_rng()
    seen = []
    for round_, least in enumerate((int(rng.integers(9, 20)), int(rng.integers(30, 45)))):
        process = start(method, data, broken, "fresh" if round_ == 0 else "resume")
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            if steps_written(broken) and steps_written(broken)[-1] >= least:
                break
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        seen.append(steps_written(broken)[-1])
    finish(start(method, data, broken, "resume"))
    first, second = weights(whole), weights(broken)
    assert first.keys() == second.keys()
    different = [k for k in first if not torch.equal(first[k], second[k])]
    assert different == [], f"killed at steps {seen}"
    assert steps_written(broken) == steps_written(whole) == list(range(2, 61, 2))
    assert not list((broken / "checkpoints").glob(".*"))


def test_a_kill_before_the_first_checkpoint_starts_again_from_the_beginning(tmp_path, data):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start("mae", data, whole))
    process = start("mae", data, broken)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not steps_written(broken):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for left in (broken / "checkpoints").glob("*"):  # in case it was quick
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    finish(start("mae", data, broken, "resume"))
    first, second = weights(whole), weights(broken)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
