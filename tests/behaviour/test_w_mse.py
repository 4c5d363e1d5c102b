"""W-MSE without whitening collapses (arXiv 2007.06346, Sec. 3: the MSE of positives alone has a constant solution)."""

import pytest
import torch

from imprint.core.progress import Progress

SMALL = {"num_views": 2, "projection": 16, "hidden": 64, "w_size": 64, "w_iter": 1}


@torch.no_grad()
def held_out(outcome):
    """Return the method's metrics on images that it was not trained on."""
    steps = outcome.run.last_step
    return {k: float(v) for k, v in outcome.method(outcome.batch, Progress(steps, steps, 10)).metrics.items()}


@pytest.mark.slow
def test_without_whitening_all_images_get_one_embedding(experiment):
    healthy = held_out(experiment("w_mse", steps=60, **SMALL))
    broken_run = experiment("w_mse", steps=60, whiten=False, **SMALL)
    broken = held_out(broken_run)
    assert healthy["embedding/std"] > 0.6 and broken["embedding/std"] < 0.3
    assert broken["embedding/positive_cosine"] > 0.97 > 0.9 > healthy["embedding/positive_cosine"]
    assert "whiten is off" in broken_run.warnings
    assert healthy["embedding/correlation"] < 0.6 < broken["embedding/correlation"]
