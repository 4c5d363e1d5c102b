"""DINO's balance of centring and sharpening, and its teacher (arXiv 2104.14294, Secs. 5.2 and 5.3, Figs. 6 and 7)."""

from __future__ import annotations

import math

import pytest

from imprint.core.progress import Steps
from imprint.core.schedules import constant

LOG_K = math.log(32)
SETTING = {"steps": 100, "freeze_prototypes": Steps(0), "momentum": constant(0.98), "teacher_temp": constant(0.04)}


def entropies(outcome) -> list[float]:
    """Return the logged teacher entropies, one every five steps."""
    return [line["dino/teacher_entropy"] for line in outcome.run.metrics() if "dino/teacher_entropy" in line]


def early(outcome) -> float:
    """Return the mean teacher entropy of steps 10 to 60, where learning rates are high."""
    window = entropies(outcome)[1:12]
    return sum(window) / len(window)


@pytest.fixture(scope="module")
def kept() -> dict[str, object]:
    return {}


@pytest.fixture
def healthy(experiment, kept):
    if "healthy" not in kept:
        kept["healthy"] = experiment("dino", **SETTING)
    return kept["healthy"]


@pytest.mark.slow
def test_without_centring_one_prototype_takes_all(experiment, healthy):
    broken = experiment("dino", **SETTING, centring=False)
    assert broken.metric("dino/teacher_entropy") < 0.4 and broken.metric("dino/kl") < 0.35
    assert 0.8 < healthy.metric("dino/teacher_entropy") < 0.9 * LOG_K and healthy.metric("dino/kl") > 0.35
    (danger,) = broken.method.dangers(broken.method.cfg)
    assert "centring is off" in danger and not healthy.method.dangers(healthy.method.cfg)


@pytest.mark.slow
def test_without_sharpening_targets_become_uniform(experiment, healthy):
    broken = experiment("dino", **SETTING | {"teacher_temp": constant(0.2)})
    assert broken.metric("dino/teacher_entropy") > 0.97 * LOG_K and broken.metric("dino/kl") < 0.15
    assert healthy.metric("dino/teacher_entropy") < 0.9 * LOG_K and healthy.metric("dino/kl") > 0.2


@pytest.mark.slow
def test_a_teacher_copied_every_step_fails_and_one_copied_every_epoch_learns(experiment, healthy):
    """A teacher without lag runs after one prototype and then the next; kNN is too coarse at this size to rank them."""
    step = experiment("dino", **SETTING, teacher_update="step")
    epoch = experiment("dino", **SETTING, teacher_update="epoch")
    assert early(step) < 0.7 and early(epoch) > 1.0 and early(healthy) > 1.0
    assert healthy.metric("dino/kl") < step.metric("dino/kl")
