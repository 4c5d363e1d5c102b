import argparse
import os

import pytest
import torch
from safetensors.torch import save_file

from imprint.backbones.read import read_state, weights_file
from imprint.core.errors import CheckpointError

STATE = {"conv1.weight": torch.arange(6.0).reshape(2, 3)}


class Payload:
    """A pickle that would run a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_safetensors_and_pickles(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=1.0)}, tmp_path / "b.pth.tar")
    torch.save(STATE, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pth.tar", "c.pt"):
        assert torch.equal(read_state(tmp_path / name)["conv1.weight"], STATE["conv1.weight"])


def test_nothing_in_a_pickle_is_executed(tmp_path):
    torch.save({"model": STATE, "extra": Payload(str(tmp_path / "made"))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="does not execute"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + b"\0" * 50])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_state(tmp_path / name)


def test_files_that_are_no_weights(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_state(tmp_path / "x.pth")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a file of weights"):
        read_state(tmp_path / "x.txt")
    with pytest.raises(CheckpointError, match="no such file"):
        read_state(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="looked for encoder.safetensors"):
        read_state(tmp_path)


def test_a_folder_gives_its_encoder(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert weights_file(tmp_path).name == "model.safetensors"
    save_file(STATE, tmp_path / "encoder.safetensors")
    assert weights_file(tmp_path).name == "encoder.safetensors"
