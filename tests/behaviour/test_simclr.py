"""SimCLR: the representation before the head beats the one after it (arXiv 2002.05709, Sec. 4.2, Fig. 8)."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from imprint.backbones.arch import Arch
from imprint.data.batch import Normalise
from imprint.data.loader import sweep
from imprint.data.photos import photos
from imprint.evals.represent import evaluation_view


@torch.no_grad()
def both_sides_of_the_head(outcome, split):
    """Return (before, after, labels) of a split of the photographs."""
    data = outcome.run.config.data
    normalise = Normalise(data.mean, data.std)
    branch = outcome.method.eval().branch
    before, after, labels = [], [], []
    for batch in sweep(photos(split), evaluation_view(32), batch_size=256, workers=1):
        (images,) = batch.prepared(torch.device("cpu"), normalise).views["eval"]
        pooled = branch.backbone(images).pooled_BD
        before.append(pooled.numpy())
        after.append(branch.head(pooled).numpy())
        labels.append(batch.labels_B.numpy())
    return np.concatenate(before), np.concatenate(after), np.concatenate(labels)


def probe(train, labels, test, truth):
    """Return the best accuracy (percent) of logistic regression on standardised features over its strength."""
    scale = StandardScaler().fit(train)
    train, test = scale.transform(train), scale.transform(test)
    models = (LogisticRegression(C=strength, max_iter=300) for strength in (0.01, 0.1, 1.0))
    return max(100.0 * model.fit(train, labels).score(test, truth) for model in models)


@pytest.mark.slow
def test_the_representation_before_the_head_beats_the_one_after_it(experiment):
    # 128 numbers before the head, 32 after it: a milder cut than the paper's 2048 to 128.
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))
    crops = {"crop_scale": (0.2, 1.0), "colour": 1.0}
    outcome = experiment("simclr", encoder={"arch": arch}, temperature=0.1, projection=32, steps=120, **crops)
    before, after, labels = both_sides_of_the_head(outcome, "train")
    before_test, after_test, truth = both_sides_of_the_head(outcome, "test")
    assert outcome.metric("embedding/std") > 0.5
    assert probe(before, labels, before_test, truth) > probe(after, labels, after_test, truth) + 2.0
