"""VICReg's regularisers, each taken away (arXiv 2105.04906, Sec. 4.1)."""

import pytest
import torch

from imprint.core.progress import Progress

FAST = {"steps": 60, "lr": 5e-3}


@torch.no_grad()
def held_out(outcome):
    """Return the method's metrics on images that it was not trained on."""
    steps = outcome.run.last_step
    return {k: float(v) for k, v in outcome.method(outcome.batch, Progress(steps, steps, 10)).metrics.items()}


@pytest.mark.slow
def test_without_variance_it_collapses_and_without_covariance_it_correlates(experiment):
    healthy = held_out(experiment("vicreg", **FAST))
    flat_run = experiment("vicreg", **FAST, std_coeff=0.0)
    flat = held_out(flat_run)
    alike_run = experiment("vicreg", **FAST, cov_coeff=0.0)
    alike = held_out(alike_run)
    assert healthy["vicreg/std"] > 0.3 and flat["vicreg/std"] < 0.2 * healthy["vicreg/std"]
    assert flat["embedding/std"] < healthy["embedding/std"]
    assert "vicreg/std" in flat_run.warnings and "std_coeff is 0" in flat_run.warnings
    assert alike["vicreg/std"] > 0.3, "the variance term alone keeps the spread"
    assert alike["embedding/correlation"] > 1.3 * healthy["embedding/correlation"]
    assert alike["vicreg/covariance"] > 5 * healthy["vicreg/covariance"]
    assert "embedding/correlation" in alike_run.warnings and "cov_coeff is 0" in alike_run.warnings
