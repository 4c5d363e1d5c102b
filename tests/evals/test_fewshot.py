"""Episodes: drawn as they should be, classified as a plain loop does, and refused where they cannot be drawn."""

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.evaluate import evaluate
from imprint.evals.fewshot import FewShotConfig, classify, draw_episodes
from imprint.ops.episodes import ridge_logits

CPU = torch.device("cpu")


def many(count=240, seed=1, side=8, classes=8):
    means = np.random.default_rng(0).uniform(60, 195, (classes, side, side, 3))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = np.clip(means[labels] + rng.normal(0, 40, (count, side, side, 3)), 0, 255).astype(np.uint8)
    return ArraySource(images, labels, name="many")


def test_episodes_are_drawn_without_replacement_from_their_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7), [20, 25, 30, 40, 5, 20, 21]))
    config = FewShotConfig(ways=5, queries=15, episodes=2000)
    rows, used = draw_episodes(labels, (), 5, config)
    assert rows.shape == (2000, 5, 20) and used == 6  # the class of five images is left out
    of_row = labels[rows]
    assert (of_row == of_row[..., :1]).all()
    assert all(len(set(ways)) == 5 for ways in of_row[..., 0].tolist())
    assert (np.diff(np.sort(rows, -1), axis=-1) > 0).all()
    again, _ = draw_episodes(labels, (), 5, config)
    assert np.array_equal(rows, again)
    other, _ = draw_episodes(labels, (), 5, FewShotConfig(ways=5, queries=15, episodes=2000, seed=1))
    assert not np.array_equal(rows, other)
    # Every image of a class of 40 is a shot equally often: 2000 episodes * 5/6 * 5/40.
    members = np.flatnonzero(labels == 3)
    shots = np.array([(rows[:, :, :5] == i).sum() for i in members])
    expected = 2000 * 5 / 6 * 5 / 40
    assert abs(shots.mean() - expected) < 0.03 * expected and shots.std() < 2 * np.sqrt(expected)
    classes = np.bincount(of_row[..., 0].reshape(-1), minlength=7)
    assert (np.abs(classes[[0, 1, 2, 3, 5, 6]] - 2000 * 5 / 6) < 100).all()


@pytest.mark.parametrize("shots", [1, 3])
def test_classification_equals_a_loop_over_episodes(shots):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    features = torch.from_numpy((rng.normal(size=(10, 12))[labels] + rng.normal(size=(200, 12))).astype(np.float32))
    config = FewShotConfig(ways=4, queries=6, episodes=25)
    rows, _ = draw_episodes(labels, (), shots, config)
    mean = features.mean(0)
    found = classify(features, rows, shots, mean, config, CPU)
    for e in range(25):
        x = torch.nn.functional.normalize(features[rows[e]] - mean, dim=-1).double()
        hits = dict.fromkeys(found, 0)
        support = x[:, :shots].reshape(4 * shots, 12)
        targets = torch.eye(4).double().repeat_interleave(shots, 0)
        centred = support - support.mean(0)
        weight = torch.linalg.solve(
            centred.T @ centred + torch.eye(12).double(), centred.T @ (targets - targets.mean(0))
        )
        for way in range(4):
            for query in x[way, shots:]:
                centres = x[:, :shots].mean(1)
                hits["euclid"] += int((query - centres).norm(dim=1).argmin()) == way
                hits["cosine"] += int(torch.cosine_similarity(query[None], centres).argmax()) == way
                hits["ridge"] += int(((query - support.mean(0)) @ weight).argmax()) == way
        for name, share in found.items():
            assert share[e] == pytest.approx(100 * hits[name] / 24), (name, e)


def test_ridge_of_many_episodes_is_ridge_of_each():
    x, q = torch.randn(6, 3, 2, 5), torch.randn(6, 4, 5)
    together = ridge_logits(x, q, 0.5)
    for e in range(6):
        torch.testing.assert_close(together[e], ridge_logits(x[e : e + 1], q[e : e + 1], 0.5)[0], atol=1e-5, rtol=1e-4)


def test_a_report_of_it(tiny, monkeypatch):
    options = {"episodes": 60, "queries": 5, "ways": 4, "device": "cpu", "cache": False, "workers": 1}
    one = evaluate("fewshot", tiny, many(), **options)
    assert one.main == "4-way 1-shot/cosine" and len(one.metrics) == 6
    metric = one.metrics["4-way 5-shot/cosine"]
    assert metric.n == 60 and metric.low < metric.value < metric.high
    assert metric.value > one.metrics[one.main].value > 30
    assert one.details["classes"] == 8 and one.details["centred_by"] == "" and "test" not in one.data
    base = ArraySource(np.random.default_rng(5).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8), name="base")
    two = evaluate("fewshot", tiny, base, many(), **options)  # base images need no labels
    assert two.details["episodes_from"] == "many" and two.details["centred_by"] == "base"
    plain = evaluate("fewshot", tiny, base, many(), centre=False, **options)
    assert plain.metrics == one.metrics and two.metrics != one.metrics
    monkeypatch.setattr("imprint.evals.fewshot._BYTES", 1)
    assert evaluate("fewshot", tiny, many(), **options).metrics == one.metrics


def test_what_cannot_work_is_refused(tiny, unlabelled):
    with pytest.raises(DataError, match="one folder per class"):
        evaluate("fewshot", tiny, unlabelled, device="cpu", cache=False)
    with pytest.raises(DataError, match=r"0 of 8 classes have the 46 images .* --queries"):
        evaluate("fewshot", tiny, many(), queries=45, device="cpu", cache=False, workers=1)
    with pytest.raises(ConfigError, match="Did you mean 'ridge'"):
        FewShotConfig(classifiers=("rigde",))
    with pytest.raises(ConfigError, match="at least two ways"):
        FewShotConfig(ways=1)
