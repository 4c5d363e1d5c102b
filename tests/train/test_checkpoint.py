from __future__ import annotations

import json
import os
import pickletools

import pytest
import torch

from imprint.core.errors import CheckpointError
from imprint.train import checkpoint as module
from imprint.train.checkpoint import Checkpoints


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((8, 8), value)}, "optimizer": {"exp_avg/w": torch.full((8, 8), -value)}}


def test_round_trip_and_last_k(tmp_path):
    keeper = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert keeper.latest() is None
    for step in (3, 6, 9):
        keeper.save(step, tensors(step), {"step": step, "best": None})
    assert keeper.steps() == [6, 9]
    found = keeper.latest()
    assert found.step == 9
    assert found.state == {"step": 9, "best": None}
    assert torch.equal(found.tensors("model")["w"], torch.full((8, 8), 9.0))
    assert torch.equal(found.tensors("optimizer")["exp_avg/w"], torch.full((8, 8), -9.0))
    assert sorted(p.name for p in found.path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert not list(keeper.folder.glob(".*"))


def test_best_stays_beside_the_last_k(tmp_path):
    keeper = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        keeper.save(step, tensors(step), {}, best=step == 2)
    assert keeper.steps() == [2, 4, 5]
    assert keeper.best_step == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_newest_one_falls_back_and_says_so(tmp_path, damage):
    keeper = Checkpoints(tmp_path, keep=3)
    keeper.save(1, tensors(1), {})
    keeper.save(2, tensors(2), {})
    victim = keeper.path(2) / "model.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[:-3])
    elif damage == "remove":
        victim.unlink()
    else:
        (keeper.path(2) / "manifest.json").write_text("{")
    assert keeper.latest().step == 1
    assert len(keeper.problems) == 1
    assert "step-00000002" in keeper.problems[0]
    # Writing the same step again replaces the damaged one.
    keeper.save(2, tensors(2), {})
    assert keeper.latest().step == 2
    assert keeper.problems == []


def test_all_damaged_is_an_error(tmp_path):
    keeper = Checkpoints(tmp_path)
    keeper.save(1, tensors(1), {})
    (keeper.path(1) / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        keeper.latest()


@pytest.mark.parametrize("moment", ["write_tensors", "write_text", "sync_folder"])
def test_a_kill_while_writing_leaves_the_last_one(tmp_path, monkeypatch, moment):
    keeper = Checkpoints(tmp_path)
    keeper.save(1, tensors(1), {})

    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, moment, killed)
        with pytest.raises(Killed):
            keeper.save(2, tensors(2), {})
    again = Checkpoints(tmp_path)
    assert again.latest().step == 1
    again.save(2, tensors(2), {})
    assert again.latest().step == 2
    assert not list(tmp_path.glob(".*"))


def test_disk_errors_name_the_last_whole_one(tmp_path, monkeypatch):
    keeper = Checkpoints(tmp_path)
    keeper.save(4, tensors(4), {})
    real = os.fsync

    def full(descriptor):
        real(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"is full .*step 5 was not written\. The last checkpoint, of step 4, is intact"
    ):
        keeper.save(5, tensors(5), {})
    monkeypatch.undo()
    assert keeper.latest().step == 4
    assert keeper.steps() == [4]
    assert not list(tmp_path.glob(".*"))


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    keeper = Checkpoints(tmp_path)
    path = keeper.save(1, tensors(1), {"a": [1, 2]})
    for file in path.iterdir():
        data = file.read_bytes()
        if file.suffix == ".json":
            json.loads(data)
        else:
            assert int.from_bytes(data[:8], "little") < len(data)
        with pytest.raises(Exception):  # noqa: B017  # whatever pickletools says to something that is no pickle
            list(pickletools.genops(data))
