"""BYOL collapses without its predictor (arXiv 2006.07733, Sec. 5, Table 5b)."""

from __future__ import annotations

import pytest
import torch

from imprint.core.schedules import constant
from imprint.ops.spread import agreement

# A fast target: with the paper's slow one the same happens over many more steps.
SETTING = {"steps": 100, "lr": 1e-2, "hidden": 256, "momentum": constant(0.9)}


def spread(outcome) -> dict[str, float]:
    """Return the measures of the online projections of held-out images."""
    with torch.no_grad():
        z1, z2 = (outcome.method.online(view[None])[0] for view in outcome.batch.views["global"])
    return {name: float(value) for name, value in agreement(z1, z2).items()}


@pytest.mark.slow
def test_without_predictor_it_collapses(experiment):
    healthy, broken = experiment("byol", **SETTING), experiment("byol", **SETTING, predictor=False)
    alive, dead = spread(healthy), spread(broken)
    assert alive["embedding/std"] > 0.6 and dead["embedding/std"] < 0.25, (alive, dead)
    assert dead["embedding/positive_cosine"] > 0.98 and alive["embedding/positive_cosine"] < 0.95, (alive, dead)
    assert broken.metric("loss") < 0.1 < healthy.metric("loss")
    assert "predictor is off" in broken.warnings and "predictor" not in healthy.warnings
