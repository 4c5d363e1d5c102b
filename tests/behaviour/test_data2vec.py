"""A teacher that follows at once takes the content out of data2vec's targets (arXiv 2202.03555, Sec. 5).

Within 50 steps of a two-block ViT they do not become one constant, but half of their dimensions are gone; an average
that follows slowly keeps them.
"""

from __future__ import annotations

import pytest

from imprint.core.schedules import constant
from imprint.losses.data2vec import averaged_layers
from imprint.ops.ranks import rankme

SETTING = {"steps": 50, "lr": 1e-2}


def dimensions(outcome) -> float:
    """Return the effective number of dimensions of the targets of held-out images, around their mean."""
    objective, images = outcome.method.objective, outcome.batch.views["global"][0]
    rows = averaged_layers(objective.teacher.layers(images, 2), post_layer_norm=True)
    return float(rankme(rows - rows.mean(0)))


@pytest.mark.slow
def test_a_teacher_that_follows_at_once_collapses(experiment):
    healthy = experiment("data2vec", **SETTING, momentum=constant(0.999))
    broken = experiment("data2vec", **SETTING, momentum=constant(0.0))
    alive, dead = dimensions(healthy), dimensions(broken)
    assert alive > 1.6 * dead, (alive, dead)
    # Targets that say less are easier to predict: the loss does not tell.
    assert broken.metric("loss") < 1.1 * healthy.metric("loss")
    method = type(healthy.method)
    assert "too fast" in " ".join(method.dangers(broken.method.cfg)) and not method.dangers(healthy.method.cfg)
