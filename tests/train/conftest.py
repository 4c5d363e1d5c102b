"""Small real runs: the debug recipes on a few synthetic photographs in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from imprint.data.arrays import ArraySource
from imprint.recipes.book import recipe


def pictures(count: int = 48, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return images of four kinds (colour by class, texture by chance) and their labels."""
    rng = np.random.default_rng(3)
    labels = np.arange(count) % 4
    base = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [160, 160, 40]])[labels]
    noise = rng.integers(-50, 50, (count, side, side, 3))
    return np.clip(base[:, None, None] + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def source():
    images, labels = pictures()
    return ArraySource(images, labels)


@pytest.fixture
def tiny():
    """Return a function: method name and changes to its debug recipe -> configuration."""

    def make(name: str = "simclr", **changes):
        changes = {"workers": 1, "device": "cpu", "precision": "fp32", **changes}
        return dataclasses.replace(recipe(f"{name}/debug"), **changes)

    return make


@pytest.fixture
def weights():
    """Return a function: run folder -> all tensors of its newest checkpoint."""
    from imprint.train.run import Run

    def read(path):
        found = Run.open(path).checkpoints.latest()
        return {f"{g}:{k}": v.clone() for g in ("model", "optimizer") for k, v in found.tensors(g).items()}

    return read


@pytest.fixture
def same():
    """Return a function that asserts bit equality of two dictionaries of tensors."""

    def check(first, second):
        assert first.keys() == second.keys()
        assert first
        different = [k for k in first if not torch.equal(first[k], second[k])]
        assert different == []

    return check
