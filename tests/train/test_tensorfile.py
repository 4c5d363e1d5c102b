from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from imprint.train.tensorfile import read_tensors, sha256_of, write_tensors


def test_written_files_are_read_by_the_public_library(tmp_path):
    tensors = {
        "odd": torch.arange(7, dtype=torch.uint8),
        "weight": torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.randn(4).to(torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "strided": torch.randn(6, 4).t(),
    }
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, tensors, {"format": "pt"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)
    for read in (load_file(path), read_tensors(path)):
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            assert read[name].dtype == value.dtype
            assert torch.equal(read[name], value)


def test_a_dtype_without_a_name_is_refused(tmp_path):
    with pytest.raises(TypeError, match="complex"):
        write_tensors(tmp_path / "x.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)})


def test_a_file_that_is_something_else_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match="no safetensors file"):
        read_tensors(path)
