"""Numbers that stop being finite stop the run: with the step, the module, the last good checkpoint, and what to try."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from imprint.core.errors import HealthError
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.recipes.book import recipe
from imprint.train.loop import train
from imprint.train.run import Run
from imprint.train.step import Stepper


@pytest.fixture
def source():
    return ArraySource(np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8))


def config(name="simclr", **changes):
    changes = {"workers": 1, "device": "cpu", "checkpoint_every": Steps(2), "length": Steps(8), **changes}
    return dataclasses.replace(recipe(f"{name}/debug"), **changes)


def at_step(monkeypatch, number, act):
    real = Stepper.__call__

    def step(self, batch, t):
        if t.step == number:
            act(self.method)
        return real(self, batch, t)

    monkeypatch.setattr(Stepper, "__call__", step)


def run_until_health_error(monkeypatch, tmp_path, source, act, name="simclr", **changes):
    at_step(monkeypatch, 5, act)
    with pytest.raises(HealthError) as caught:
        train(config(name, **changes), tmp_path / "run", source=source)
    assert caught.value.exit_code == 3
    found = Run.open(tmp_path / "run").checkpoints.latest()
    assert found.step == 4
    assert all(torch.isfinite(v).all() for v in found.tensors("model").values() if v.is_floating_point())
    message = str(caught.value)
    assert "step 5" in message
    assert "last good checkpoint is that of step 4" in message
    assert "learning rate" in message
    return message


def test_a_module_that_makes_nan_is_named(monkeypatch, tmp_path, source):
    def poison(method):
        layer = method.branch.backbone.get_submodule("model.layer2.0.conv1")
        layer.register_forward_hook(lambda module, inputs, output: output * float("nan"))

    message = run_until_health_error(monkeypatch, tmp_path, source, poison)
    assert "branch.backbone.model.layer2.0.conv1" in message


def test_a_weight_that_is_nan_is_named(monkeypatch, tmp_path, source):
    def poison(method):
        with torch.no_grad():
            method.branch.backbone.get_parameter("model.layer3.0.conv2.weight")[0, 0, 0, 0] = float("inf")

    message = run_until_health_error(monkeypatch, tmp_path, source, poison)
    assert "'branch.backbone.model.layer3.0.conv2.weight' was non-finite before the step" in message


def test_a_gradient_that_overflows_in_backward_is_named(monkeypatch, tmp_path, source):
    def poison(method):
        method.decoder.get_submodule("pixels").weight.register_hook(lambda g: g * float("inf"))

    message = run_until_health_error(monkeypatch, tmp_path, source, poison, name="mae")
    assert "it began in backward" in message
    assert "decoder." in message


def test_a_learning_rate_that_is_far_too_high_ends_in_a_health_error(tmp_path, source):
    base = config("mae", length=Steps(60))
    wild = dataclasses.replace(
        base, optim=dataclasses.replace(base.optim, name="sgd", lr=dataclasses.replace(base.optim.lr, base=1e12))
    )
    with pytest.raises(HealthError, match="non-finite at step"):
        train(wild, tmp_path / "run", source=source)
