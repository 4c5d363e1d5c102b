"""LeJEPA collapses without SIGReg (arXiv 2511.08544, Sec. 4): nothing else keeps embeddings apart."""

from __future__ import annotations

import pytest
import torch

from imprint.ops.spread import agreement

SETTING = {"steps": 60, "lr": 2e-3, "batch_size": 64}


def embeddings(outcome) -> torch.Tensor:
    """Return the embeddings of the global views of held-out images, the network as in evaluation."""
    with torch.no_grad():
        return outcome.method.eval().branch(outcome.batch.views["global"])


@pytest.mark.slow
def test_without_sigreg_it_collapses(experiment):
    healthy, broken = experiment("lejepa", **SETTING), experiment("lejepa", **SETTING, lambd=0.0)
    alive, dead = embeddings(healthy), embeddings(broken)
    # Absolute size: SIGReg asks for unit variance, the prediction alone for none.
    assert alive.std(dim=1).mean() > 0.4 and dead.std(dim=1).mean() < 0.15, (alive.std(dim=1), dead.std(dim=1))
    assert healthy.metric("lejepa/sigreg") < 10
    assert broken.metric("lejepa/prediction") < 0.1 * healthy.metric("lejepa/prediction")
    spread = agreement(alive[0], alive[1])
    assert spread["embedding/std"] > 0.5 and spread["embedding/positive_cosine"] > 0.1, spread
