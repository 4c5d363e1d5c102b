"""Two real processes over gloo."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def work():
    """Return the module `two_processes`, importable by its name in the children, too."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    yield importlib.import_module("two_processes")
    sys.path.remove(folder)


@pytest.fixture
def in_two(tmp_path):
    """Return a function: worker and arguments -> the results of ranks 0 and 1."""

    def run(worker, *args):
        from imprint.dist.launch import launch

        launch(worker, (str(tmp_path), *args), 2)
        return [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]

    return run


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
