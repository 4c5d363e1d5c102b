"""A disk that fills while a checkpoint is written: a clear error, and the last checkpoint whole."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from imprint.core.errors import CheckpointError
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.recipes.book import recipe
from imprint.train import checkpoint
from imprint.train.loop import train
from imprint.train.run import Run

LIMITED = """
import resource, signal, sys
import torch
from pathlib import Path
from imprint.core.errors import CheckpointError
from imprint.train.checkpoint import Checkpoints

keeper = Checkpoints(Path(sys.argv[1]))
keeper.save(1, {"model": {"w": torch.ones(1000)}}, {"step": 1})
# The kernel refuses every file above 64 kB from here on: a real refusal in the middle of a write.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    keeper.save(2, {"model": {"w": torch.ones(100_000)}}, {"step": 2})
except CheckpointError as error:
    print(error)
else:
    sys.exit("the write was not refused")
assert keeper.steps() == [1], keeper.steps()
assert keeper.latest().tensors("model")["w"].sum() == 1000
assert not list(Path(sys.argv[1]).glob(".*")), "a partial checkpoint was left"
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_the_kernel_refuses_in_the_middle_of_a_write(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is full" in done.stdout
    assert "The last checkpoint, of step 1, is intact" in done.stdout


def test_a_run_stops_with_a_clear_error_and_resumes_when_there_is_space(tmp_path, monkeypatch):
    source = ArraySource(np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8))
    config = dataclasses.replace(
        recipe("simclr/debug"), length=Steps(8), checkpoint_every=Steps(2), workers=1, device="cpu"
    )
    real, calls = checkpoint.write_tensors, []

    def filling(path, tensors, metadata=None):
        calls.append(path)
        if len(calls) > 4:  # two checkpoints of two files each went well
            path.write_bytes(b"\0" * 1000)
            raise OSError(28, "No space left on device", str(path))
        return real(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", filling)
        with pytest.raises(
            CheckpointError, match=r"step 6 was not written\. The last checkpoint, of step 4, is intact"
        ):
            train(config, tmp_path / "run", source=source)
    run = Run.open(tmp_path / "run")
    assert run.checkpoints.latest().step == 4
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert train(None, tmp_path / "run", resume=True, source=source).last_step == 8


def test_a_log_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    from imprint.train.runlog import RunLog

    source = ArraySource(np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8))
    config = dataclasses.replace(
        recipe("simclr/debug"), length=Steps(8), checkpoint_every=Steps(2), workers=1, device="cpu"
    )
    real = RunLog._put

    def full(self, line):
        if line["step"] >= 5:
            raise OSError(28, "No space left on device")
        real(self, line)

    monkeypatch.setattr(RunLog, "_put", full)
    with pytest.raises(CheckpointError, match="the last checkpoint, of step 4, is intact"):
        train(config, tmp_path / "run", source=source)
