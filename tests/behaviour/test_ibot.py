"""iBOT learns to predict hidden patches, which DINO's term alone does not teach (arXiv 2111.07832, Sec. 4.3)."""

from __future__ import annotations

import pytest
import torch

from imprint.core.progress import Progress, Steps
from imprint.core.schedules import constant

SETTING = {
    "steps": 100,
    "freeze_prototypes": Steps(0),
    "momentum": constant(0.98),
    "teacher_temp": constant(0.04),
    "patch_teacher_temp": constant(0.04),
}


@pytest.mark.slow
def test_the_patch_term_teaches_hidden_patches(experiment):
    with_term, without = experiment("ibot", **SETTING), experiment("ibot", **SETTING, patch_weight=0.0)
    excess = {}
    for name, outcome in (("with", with_term), ("without", without)):
        with torch.no_grad():
            metrics = outcome.method.eval()(outcome.batch, Progress(100, 100, 10)).metrics
        excess[name] = float(metrics["ibot/patch_loss"])
    assert excess["with"] < 0.8 * excess["without"], excess
