"""Barlow Twins with lambda 0 keeps redundant dimensions (arXiv 2103.03230, Sec. 2.1 and 4)."""

import pytest
import torch

from imprint.core.progress import Progress


@torch.no_grad()
def held_out(outcome):
    """Return the method's metrics on images that it was not trained on."""
    steps = outcome.run.last_step
    return {k: float(v) for k, v in outcome.method(outcome.batch, Progress(steps, steps, 10)).metrics.items()}


@pytest.mark.slow
def test_lambda_zero_keeps_redundancy(experiment):
    healthy = held_out(experiment("barlow_twins", steps=60, lr=5e-3, lambd=0.05))
    broken_run = experiment("barlow_twins", steps=60, lr=5e-3, lambd=0.0)
    broken = held_out(broken_run)
    assert "lambd is 0" in broken_run.warnings
    # Both make the views agree; only one makes the dimensions differ.
    assert broken["embedding/correlation"] > 1.5 * healthy["embedding/correlation"]
    assert broken["barlow_twins/off_diagonal"] > 2 * healthy["barlow_twins/off_diagonal"]
