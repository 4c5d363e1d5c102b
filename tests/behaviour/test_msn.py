"""MSN without mean-entropy maximisation uses few prototypes (arXiv 2204.07141, Sec. 3)."""

import pytest
import torch

from imprint.core.schedules import Schedule
from imprint.losses.msn import msn_loss


def held_out(outcome):
    """Return how many prototypes held-out images use (perplexity of the mean prediction), and the largest share."""
    method, images = outcome.method, outcome.batch.views["global"][0]
    with torch.no_grad():
        z = method.teacher(images[None])[0]
        mean = msn_loss(z, z, method.prototypes.weight, sharpening=1.0).targets_BK.mean(0)
    return float(torch.special.entr(mean).sum().exp()), float(mean.max())


@pytest.mark.slow
def test_without_memax_few_prototypes_take_all_images(experiment):
    settings = {"steps": 80, "lr": 3e-3, "sinkhorn_iterations": 0, "prototypes": 32, "focal_views": 0}
    settings["momentum"] = Schedule(start=0.9, end=1.0, shape="linear")
    healthy = experiment("msn", **settings)
    broken = experiment("msn", **settings, memax_weight=0.0)
    assert healthy.metric("msn/prototypes_used") > 0.4 > 0.15 > broken.metric("msn/prototypes_used")
    assert broken.metric("msn/cross_entropy") < 0.6 * healthy.metric("msn/cross_entropy"), "few are easier to match"
    (many, share), (few, most) = held_out(healthy), held_out(broken)
    assert many > 12 > 6 > few and most > 2 * share
    assert not healthy.warnings
    assert "few prototypes" in broken.warnings and "memax_weight is 0" in broken.warnings
