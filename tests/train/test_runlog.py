from __future__ import annotations

import io
import json
import math

import pytest
import torch

from imprint.core.progress import Progress
from imprint.dist.world import World
from imprint.train import console
from imprint.train.console import Live, Plain, Silent, console_for, duration, summary
from imprint.train.runlog import RunLog, cut_lines, read_lines


@pytest.fixture
def clock():
    return Progress(0, 10, 5)


def lines(folder):
    return [found for _, found in read_lines(folder / "metrics.jsonl")]


def test_a_line_holds_means_over_the_window(tmp_path, clock):
    log = RunLog(tmp_path, World(), clock=clock)
    for value in (1.0, 3.0):
        log.add({"loss": torch.tensor(value), "x/y": torch.tensor(2 * value)}, images=8)
    log.write(clock.at(2), {"lr": 0.5})
    log.add({"loss": torch.tensor(7.0), "x/y": torch.tensor(0.0)}, images=8)
    log.write(clock.at(3), {"lr": 0.25})
    log.close()
    first, second = lines(tmp_path)
    assert (first["step"], first["epoch"], first["loss"], first["x/y"], first["lr"]) == (2, 0.4, 2.0, 4.0, 0.5)
    assert second["loss"] == 7.0
    assert first["memory_mb"] > 1
    assert 0 <= first["data_wait"] <= 1


def test_a_window_cut_by_a_checkpoint_is_carried_on(tmp_path, clock):
    whole = RunLog(tmp_path / "whole", World(), clock=clock)
    cut = RunLog(tmp_path / "cut", World(), clock=clock)
    values = [0.1, 0.7, 1.9]
    for value in values:
        whole.add({"loss": torch.tensor(value)}, images=1)
    for value in values[:2]:
        cut.add({"loss": torch.tensor(value)}, images=1)
    state = json.loads(json.dumps(cut.window()))
    cut.close()
    resumed = RunLog(tmp_path / "cut", World(), clock=clock.at(2))
    resumed.restore_window(state)
    resumed.add({"loss": torch.tensor(values[2])}, images=1)
    assert whole.write(clock.at(3), {})["loss"] == resumed.write(clock.at(3), {})["loss"]
    whole.close()
    resumed.close()


def test_lines_after_the_resumed_step_and_half_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 3}\n{"step": 4, "lo')
    cut_lines(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n'
    cut_lines(tmp_path / "absent.jsonl", 2)


def test_non_finite_values_stay_valid_json(tmp_path, clock):
    log = RunLog(tmp_path, World(), clock=clock)
    log.values(clock.at(1), {"probe/x": math.nan})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["probe/x"] is None


def test_other_processes_write_and_say_nothing(tmp_path, clock, capfd):
    log = RunLog(tmp_path / "run", World(rank=1, size=2), clock=clock)
    log.event(clock, "hello")
    log.values(clock, {"a": 1.0})
    log.close()
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_tensorboard_holds_the_same_values(tmp_path, clock):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, World(), clock=clock)
    log.add({"loss": torch.tensor(2.5)}, images=1)
    log.write(clock.at(1), {"lr": 0.5})
    log.values(clock.at(1), {"probe/knn_top1": 40.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == [2.5]
    assert [e.value for e in events.Scalars("probe/knn_top1")] == [40.0]


LINE = {"step": 5, "loss": 1.23456, "images_per_s": 812.4, "data_wait": 0.034, "memory_mb": 2048.0}


def test_plain_lines_come_seldom_and_at_the_end(monkeypatch, capfd):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    plain = Plain()
    plain.start(10, 0)
    for step in range(1, 11):
        now[0] += 4.0
        plain.show({**LINE, "step": step})
    text = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in text] == ["4/10", "8/10", "10/10"]
    assert "loss 1.2346  812 samples/s  data wait 3%  2.0 GB" in text[0]
    assert text[0].endswith("0:24 left")


def test_the_live_bar_runs_to_its_end(monkeypatch):
    pytest.importorskip("rich")
    screen = io.StringIO()
    monkeypatch.setattr(console.sys, "stderr", screen)
    live = Live()
    live.start(10, 0)
    live.show(LINE)
    live.say("a [line] above")
    live.stop()
    assert "a [line] above" in screen.getvalue()
    assert "training" in screen.getvalue()


def test_which_console(monkeypatch):
    assert type(console_for(False)) is Silent
    assert type(console_for(True)) is Plain  # under pytest stderr is no terminal


def test_texts():
    assert summary({**LINE, "loss": None}).startswith("812 samples/s")
    assert [duration(s) for s in (0, 59.9, 61, 3723)] == ["0:00", "0:59", "1:01", "1:02:03"]
