"""SimSiam collapses without stop-gradient (arXiv 2011.10566, Sec. 4.1, Fig. 2).

Both runs leave the projector's last BatchNorm out (the paper's Table 3, "hidden-only"), which alone costs little: a
standardised output cannot be constant within a batch, and would hide the collapse in one remaining direction.
"""

from __future__ import annotations

import pytest
import torch

from imprint.ops.spread import agreement

SETTING = {"steps": 80, "lr": 1e-2, "projection": 256, "output_norm": False}


def spread(outcome) -> dict[str, float]:
    """Return the measures of the projections of held-out images."""
    with torch.no_grad():
        z1, z2 = (outcome.method.branch(view[None])[0] for view in outcome.batch.views["global"])
    return {name: float(value) for name, value in agreement(z1, z2).items()}


@pytest.mark.slow
def test_without_stop_gradient_it_collapses(experiment):
    healthy, broken = experiment("simsiam", **SETTING), experiment("simsiam", **SETTING, stop_gradient=False)
    alive, dead = spread(healthy), spread(broken)
    assert alive["embedding/std"] > 0.5 and dead["embedding/std"] < 0.2, (alive, dead)
    assert dead["embedding/positive_cosine"] > 0.98 and alive["embedding/positive_cosine"] < 0.95, (alive, dead)
    assert broken.metric("loss") < -0.98 < healthy.metric("loss"), "the degenerate solution reaches the minimum of -1"
    assert "stop_gradient is off" in broken.warnings and "stop_gradient" not in healthy.warnings
