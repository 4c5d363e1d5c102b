"""SwAV without Sinkhorn collapses to few prototypes (arXiv 2006.09882, Sec. 3.1)."""

import pytest
import torch
import torch.nn.functional as F

from imprint.core.progress import Steps


def held_out(outcome):
    """Return std of unit embeddings times sqrt(D), and the share of prototypes nearest to some held-out image."""
    with torch.no_grad():
        z = F.normalize(outcome.method.branch(outcome.batch.views["global"])[0], dim=-1)
        nearest = outcome.method.prototypes(z).argmax(-1)
    return float(z.std(0).mean() * z.shape[1] ** 0.5), len(nearest.unique()) / outcome.method.cfg.prototypes


@pytest.mark.slow
def test_without_balanced_codes_all_images_share_one_prototype(experiment):
    settings = {"steps": 80, "lr": 5e-3, "queue": 0, "prototypes": 64, "projection": 32, "local_crops": 0}
    settings["freeze_prototypes"] = Steps(0)
    healthy = experiment("swav", **settings)
    broken = experiment("swav", **settings, sinkhorn_iterations=0)
    assert healthy.metric("swav/prototypes_used") > 0.5 > 0.1 > broken.metric("swav/prototypes_used")
    assert broken.metric("loss") < 0.1 < 1.0 < healthy.metric("loss"), "agreement on one prototype costs nothing"
    (spread, used), (flat, few) = held_out(healthy), held_out(broken)
    assert flat < 0.6 * spread
    assert few <= 0.1 and used > 0.25
    assert not healthy.warnings
    assert "few prototypes" in broken.warnings and "sinkhorn_iterations is 0" in broken.warnings
