"""A run of three stages over two processes follows that of one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from imprint.core.stages import begun
from imprint.data.arrays import ArraySource
from imprint.recipes.book import stages_of
from imprint.train.config import LR, OptimConfig
from imprint.train.entry import pretrain_run
from imprint.train.run import Run


@pytest.mark.slow
def test_three_stages_over_two_processes_follow_those_of_one(tmp_path):
    rng = np.random.default_rng(3)
    source = ArraySource(rng.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8), np.arange(48) % 4)
    losses = {}
    for devices in (1, 2):
        # Small rates: over many steps rounding differences grow, and the runs would part company.
        plan = tuple(
            dataclasses.replace(
                stage,
                optim=OptimConfig(name="sgd", lr=LR(base=0.01, rule="none")),
                device="cpu",
                devices=devices,
                precision="fp32",
                workers=1,
            )
            for stage in stages_of("simclr_v2/debug")
        )
        folder = tmp_path / str(devices)
        pretrain_run(plan, folder, source=source)
        stages = [Run.open(stage) for stage in begun(folder)]
        losses[devices] = [[line["loss"] for line in stage.metrics() if "loss" in line] for stage in stages]
    assert [len(stage) for stage in losses[2]] == [8, 8, 8]
    for one, two in zip(losses[1], losses[2], strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3)
