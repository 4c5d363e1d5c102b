"""kNN protocol: against a plain loop, its intervals, its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.features import FeatureTable
from imprint.evals.intervals import wilson
from imprint.evals.knn import KNN, KNNConfig, vote
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import EvalData


def table(features: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> FeatureTable:
    rows = np.arange(len(labels))
    return FeatureTable(features.astype(np.float32), labels.astype(np.int64), rows, classes, [str(i) for i in rows])


def naive(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, t: float, classes: int) -> np.ndarray:
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    out = []
    for q in queries:
        cosine = bank @ (q / np.linalg.norm(q))
        votes = np.zeros(classes)
        for i in np.argsort(-cosine)[:k]:
            votes[labels[i]] += math.exp(cosine[i] / t)
        out.append(np.argsort(-votes))
    return np.array(out)


def test_equals_the_plain_loop_for_every_k_and_temperature() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(150, 5)), rng.normal(size=(60, 5))
    labels, target = rng.integers(0, 7, 150), rng.integers(0, 7, 60)
    names = tuple("abcdefg")
    config = KNNConfig(ks=(3, 20, 400), temperatures=(0.07, 0.5), device="cpu")
    metrics, details = vote(table(bank, labels, names), table(queries, target, names), config)
    for k in (3, 20):
        for t in (0.07, 0.5):
            want = naive(bank, labels, queries, k, t, 7)
            assert metrics[f"top1/k={k},T={t:g}"].value == pytest.approx(100 * (want[:, 0] == target).mean())
    want = naive(bank, labels, queries, 3, 0.07, 7)
    assert metrics["top1"].value == pytest.approx(100 * (want[:, 0] == target).mean())
    found = metrics["top1"]
    assert found.low < found.value < found.high and found.n == 60
    assert details["left_out_ks"] == [400]
    # top5 counts classes without a single vote in an undefined order; with k above it there are enough votes
    many, _ = vote(
        table(bank, labels, names),
        table(queries, target, names),
        KNNConfig(ks=(60,), temperatures=(1.0,), device="cpu"),
    )
    want = naive(bank, labels, queries, 60, 1.0, 7)
    assert many["top5"].value == pytest.approx(100 * (want[:, :5] == target[:, None]).any(1).mean())


def test_protocol_reads_a_signal_and_reports_it(train, test) -> None:
    report = KNN().run(PixelEncoder(8), EvalData(train=train, test=test), KNNConfig(device="cpu", cache=False))
    assert report.main == "top1" and report.metrics["top1"].value > 90
    assert report.data["train"]["count"] == 240 and report.data["test"]["spec"] == "test"
    assert report.cost["images"] == 320 and report.cost["features_s"] > 0


def test_classes_are_matched_by_name(train, test) -> None:
    order = ("dog", "cat", "bee", "ant")
    renumbered = np.array([order.index(train.classes[i]) for i in test.labels])
    images = np.stack([test.read(i) for i in range(len(test))])
    turned = ArraySource(images, renumbered, classes=order)
    config = KNNConfig(device="cpu", cache=False)
    plain = KNN().run(PixelEncoder(8), EvalData(train=train, test=test), config)
    other = KNN().run(PixelEncoder(8), EvalData(train=train, test=turned), config)
    assert plain.metrics["top1"] == other.metrics["top1"]


def test_strange_classes_and_missing_labels_are_named(train, test, unlabelled) -> None:
    images = np.stack([test.read(i) for i in range(len(test))])
    strange = ArraySource(images, test.labels, classes=("ant", "bee", "cat", "emu"))
    config = KNNConfig(device="cpu", cache=False)
    with pytest.raises(DataError, match=r"1 of 4 test classes are unknown to the train source: 'emu'"):
        KNN().run(PixelEncoder(8), EvalData(train=train, test=strange), config)
    with pytest.raises(DataError, match=r"train source 'bare' has none.*labelfree"):
        KNN().run(PixelEncoder(8), EvalData(train=unlabelled, test=test), config)
    with pytest.raises(DataError, match="test source 'bare'"):
        KNN().run(PixelEncoder(8), EvalData(train=train, test=unlabelled), config)
    with pytest.raises(DataError, match="--test"):
        KNN().run(PixelEncoder(8), EvalData(train=train), config)


def test_bad_settings() -> None:
    for wrong in ({"ks": ()}, {"ks": (0,)}, {"temperatures": (0.0,)}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            KNNConfig(**wrong)
    few = table(np.eye(3), np.arange(3), ("a", "b", "c"))
    with pytest.raises(DataError, match="3 images"):
        vote(few, few, KNNConfig(ks=(10,), device="cpu"))


def test_wilson_interval() -> None:
    low, high = wilson(85, 100)
    assert (low, high) == (pytest.approx(0.7672, abs=1e-4), pytest.approx(0.9069, abs=1e-4))  # tabulated
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    covered = np.mean([(lambda i: i[0] <= 0.9 <= i[1])(wilson(int(h), 50)) for h in rng.binomial(50, 0.9, 2000)])
    assert 0.93 < covered < 0.98


def test_features_that_are_not_finite_do_not_poison_others() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40, 4))
    features[3] = np.nan
    labels = np.arange(40) % 2
    found, _ = vote(
        table(features, labels, ("a", "b")), table(features, labels, ("a", "b")), KNNConfig(ks=(1,), device="cpu")
    )
    assert found["top1"].value >= 97.5 and torch.isfinite(torch.tensor(found["top1"].value))
