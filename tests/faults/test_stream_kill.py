"""Streams that are killed, end early, or find other shards than before."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from imprint.core.errors import CheckpointError
from imprint.data.photos import photos


@pytest.fixture
def shards(tmp_path):
    """Tars of photographs: 60 steps of 16 and a rest, one shard empty, one member damaged."""
    source, folder = photos("train"), tmp_path / "shards"
    folder.mkdir()
    tiles = []
    for i in range(60):
        stream = io.BytesIO()
        Image.fromarray(np.asarray(source.read(7 * i))[:32, :32]).save(stream, "jpeg")
        tiles.append(stream.getvalue())
    for s, count in enumerate((150, 0, 210, 190, 250, 170)):
        with tarfile.open(folder / f"{s}.tar", "w") as archive:
            for k in range(count):
                data = b"no image" if (s, k) == (3, 20) else tiles[(s * 17 + k) % 60]
                info = tarfile.TarInfo(f"{k:04d}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder


def test_a_run_killed_in_mid_stream_ends_with_the_weights_of_one_that_was_not(tmp_path, shards, tools):
    whole, broken, words = tmp_path / "whole", tmp_path / "broken", str(shards / "*.tar")
    tools.go("simclr", words, str(whole), stream="on")
    rng = np.random.default_rng()
    for how, low, high in (("fresh", 9, 24), ("resume", 30, 48)):
        process = tools.start("simclr", words, broken, how, 1, "on")
        tools.wait_for(broken, int(rng.integers(low, high)), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    tools.go("simclr", words, str(broken), "resume")
    first, second = tools.weights(whole), tools.weights(broken)
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    assert tools.steps_written(broken) == tools.steps_written(whole) == list(range(2, 61, 2))


def test_a_stream_that_is_too_short_ends_its_run_well(tmp_path, shards, tools):
    from imprint.train.run import Run

    for name in ("2.tar", "4.tar", "5.tar"):
        (shards / name).unlink()
    tools.go("simclr", str(shards / "*.tar"), str(tmp_path / "run"), stream="on")  # 340 images: 21 steps
    run = Run.open(tmp_path / "run")
    assert run.finished and run.last_step == 21 and tools.steps_written(run.path)[-1] == 21
    assert run.encoder().embed_dim > 0
    notes = [line["event"] if "event" in line else line.get("warning", "") for line in run.metrics()]
    assert any("stream ended" in str(note) for note in notes)
    tools.go("simclr", "", str(run.path), "resume")  # finished: nothing is left to do
    assert Run.open(run.path).last_step == 21


def test_shards_that_changed_between_stop_and_resume_are_refused(tmp_path, shards, tools):
    from imprint.train.run import Run

    tools.go("simclr", str(shards / "*.tar"), str(tmp_path / "run"), stream="on")
    run = Run.open(tmp_path / "run")
    shutil.rmtree(run.checkpoints.path(60))
    state = json.loads((run.checkpoints.path(56) / "state.json").read_text())["stream"]
    assert state["shard"] >= 3 and state["before"] > 300
    (shards / "0.tar").unlink()
    with pytest.raises(CheckpointError, match="have changed since the run was stopped"):
        tools.go("simclr", "", str(run.path), "resume")
