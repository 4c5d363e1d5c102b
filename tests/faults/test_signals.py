"""SIGTERM and Ctrl-C: a checkpoint, then exit code 143, with one process and with several."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from imprint.core.errors import Preempted

_spec = importlib.util.spec_from_file_location("kill_tools", Path(__file__).with_name("test_kill.py"))
tools = importlib.util.module_from_spec(_spec)
sys.modules["kill_tools"] = tools
_spec.loader.exec_module(tools)
data = tools.data


@pytest.mark.parametrize(("number", "devices"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_checkpoints_and_leaves(tmp_path, data, number, devices):
    run = tmp_path / "run"
    process = tools.start("simclr", data, run, devices=devices)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if len(tools.steps_written(run)) >= 2:
            break
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=90)
    text = err.decode()
    assert process.returncode == 1, text  # the exception of this plain program; the command line turns it into 143
    assert "Preempted" in text
    assert "with a checkpoint" in text
    assert Preempted.exit_code == 143
    from imprint.train.run import Run

    found = Run.open(run).checkpoints.latest()
    assert 4 <= found.step < 60
    events = [line["event"] for line in Run.open(run).metrics() if "event" in line]
    assert any(e.startswith("stopped by") for e in events)
    tools.finish(tools.start("simclr", data, run, "resume"))
    assert tools.weights(run)
