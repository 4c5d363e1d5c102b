"""SIGTERM and Ctrl-C: a checkpoint at the next step, then `Preempted` (exit code 143), alone and with several."""

from __future__ import annotations

import os
import signal

import pytest

from imprint.core.errors import Preempted
from imprint.train.run import Run


@pytest.mark.parametrize(("number", "devices"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_checkpoints_and_leaves(tmp_path, images, tools, number, devices):
    run = tmp_path / "run"
    process = tools.start("simclr", images, run, "fresh", devices)
    tools.wait_for(run, 4, process)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    text = err.decode()
    assert process.returncode == 1, text  # the uncaught exception of a plain program; the command line makes it 143
    assert "Preempted: stopped at step" in text
    assert "--resume" in text
    assert Preempted.exit_code == 143
    found = Run.open(run).checkpoints.latest()
    assert 4 <= found.step < tools.STEPS
    events = [line["event"] for line in Run.open(run).metrics() if "event" in line]
    assert f"stopped by {signal.Signals(number).name}" in events
    if devices == 1:
        tools.go("simclr", str(images), str(run), "resume")
        assert tools.weights(run)
