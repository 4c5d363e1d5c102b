"""MoCo v1 with momentum 0 is worse (arXiv 1911.05722, Sec. 4.1: it fails to train; larger m is better).

With m = 0 the key encoder is the query encoder, so the queue holds keys of 16 different networks. Measured after 100
steps of SGD at the paper's temperature, against the same run with m = 0.99:

- the training loss against the queue (log 513 = 6.24 is chance) and the share of queries that find their key;
- on held-out photographs, with no queue at all: the spread of the representation (mean standard deviation of
  L2-normalised features times sqrt(D)) and its effective rank.

kNN accuracy falls, too, but by 2 to 10 points depending on the seed, so it must only not be better.
"""

from __future__ import annotations

import pytest
import torch

from imprint.core.progress import Steps
from imprint.core.schedules import constant
from imprint.ops.ranks import rankme
from imprint.ops.spread import agreement
from imprint.train.config import LR, OptimConfig

RATE = OptimConfig(name="sgd", lr=LR(base=0.12, rule="none", warmup=Steps(10)), weight_decay=constant(1e-4))


@torch.no_grad()
def held_out(outcome) -> tuple[float, float]:
    """Return spread and effective rank of the representation of held-out images."""
    one, two = (outcome.method.encoder(view).pooled_BD for view in outcome.batch.views["global"])
    return float(agreement(one, two)["embedding/std"]), float(rankme(one - one.mean(0)))


@pytest.mark.slow
def test_momentum_0_is_worse(experiment) -> None:
    def run(momentum: float):
        return experiment(
            "moco_v1",
            steps=100,
            batch_size=32,
            optim=RATE,
            momentum=constant(momentum),
            queue=512,
            projection=32,
            temperature=0.07,
        )

    healthy, broken = run(0.99), run(0.0)
    assert healthy.metric("loss") < broken.metric("loss") - 0.4
    assert healthy.metric("moco/accuracy") > broken.metric("moco/accuracy") + 0.05
    (spread, rank), (low_spread, low_rank) = held_out(healthy), held_out(broken)
    assert spread > 1.4 * low_spread
    assert rank > 1.4 * low_rank
    assert healthy.knn() > broken.knn()
