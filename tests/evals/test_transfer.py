"""Transfer: each pair is the engine's own result, failures cost nothing else, what was done is remembered."""

import numpy as np
import pytest

from imprint.cli.evaluate import one_or_more
from imprint.core.errors import ConfigError, DataError, HealthError
from imprint.data.arrays import ArraySource
from imprint.evals.evaluate import evaluate
from imprint.evals.linear import Linear
from imprint.evals.transfer import Transfer, set_name

FAST = {"device": "cpu", "workers": 1}


def pair(name, seed, classes=("ant", "bee", "cat", "dog"), uneven=False):
    means = np.random.default_rng(seed).uniform(60, 195, (len(classes), 8, 8, 3))
    found = []
    for role, count in (("train", 120), ("test", 60)):
        rng = np.random.default_rng([seed, count])
        labels = np.arange(count) % len(classes)
        if uneven:
            labels[: count // 2] = 0
        images = np.clip(means[labels] + rng.normal(0, 70, (count, 8, 8, 3)), 0, 255).astype(np.uint8)
        found.append(ArraySource(images, labels, classes=classes, name=f"data/{name}/{role}"))
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_each_data_set_gets_what_the_engine_alone_gives(tiny, cache):
    (a, a_test), (b, b_test) = pair("birds", 1), pair("cars", 2, uneven=True)
    options = {"linear": {"epochs": 3, "lrs": (0.01, 0.1)}, "metrics": ("top1", "mean_per_class")}
    report = evaluate("transfer", tiny, (a, b), (a_test, b_test), **FAST, **options)
    assert list(report.metrics) == ["birds/top1", "cars/mean_per_class", "mean"] and report.main == "mean"
    alone = [evaluate("linear", tiny, x, y, epochs=3, lrs=(0.01, 0.1), **FAST) for x, y in ((a, a_test), (b, b_test))]
    assert report.metrics["birds/top1"] == alone[0].metrics["top1"]
    mean = np.mean(list(alone[1].details["per_class_top1"].values()))
    assert report.metrics["cars/mean_per_class"].value == pytest.approx(mean)
    assert report.metrics["mean"].value == pytest.approx((alone[0].metrics["top1"].value + mean) / 2)
    assert [row["name"] for row in report.details["table"]] == ["birds", "cars"] and not report.details["failed"]
    assert not list((cache / "evaluations").glob("*/result.json"))  # finished: nothing is kept


@pytest.mark.parametrize("engine", ["knn", "logreg"])
def test_other_engines(tiny, engine):
    (a, a_test) = pair("birds", 1)
    options = {"metrics": ("mean_per_class",)} | ({"knn": {"ks": (5,)}} if engine == "knn" else {})
    report = evaluate("transfer", tiny, (a,), (a_test,), engine=engine, **options, **FAST)
    own = {"ks": (5,)} if engine == "knn" else {}
    alone = evaluate(engine, tiny, a, a_test, **own, **FAST)
    assert report.metrics["mean"].value == pytest.approx(alone.metrics["top1"].value, abs=1e-3)  # balanced classes


def test_a_bad_data_set_does_not_cost_the_others(tiny, tmp_path):
    (a, a_test), (b, _) = pair("birds", 1), pair("cars", 2)
    strangers = pair("cars", 2, classes=("one", "two", "three", "four"))[1]
    missing = str(tmp_path / "nowhere")
    report = evaluate("transfer", tiny, (b, missing, a), (strangers, a_test, a_test), engine="knn", **FAST)
    assert list(report.metrics) == ["birds/top1", "mean"] and report.metrics["mean"].n == 1
    assert set(report.details["failed"]) == {"cars", "nowhere"}
    assert "unknown to the train source" in report.details["failed"]["cars"]
    with pytest.raises(DataError, match="none of the 1 data sets"):
        evaluate("transfer", tiny, (missing,), (missing,), engine="knn", **FAST)


def test_killed_in_the_second_it_goes_on_there(tiny, monkeypatch, cache):
    (a, a_test), (b, b_test) = pair("birds", 1), pair("cars", 2)
    options = {"linear": {"epochs": 3}}
    whole = evaluate("transfer", tiny, (a, b), (a_test, b_test), **FAST, **options)
    ran = []
    run = Linear.run

    def dying(self, encoder, data, config=None):
        ran.append(data.train.spec)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(self, encoder, data, config)

    monkeypatch.setattr(Linear, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate("transfer", tiny, (a, b), (a_test, b_test), **FAST, **options)
    assert len(list((cache / "evaluations").glob("*/result.json"))) == 1
    again = evaluate("transfer", tiny, (a, b), (a_test, b_test), **FAST, **options)
    assert ran == ["data/birds/train", "data/cars/train", "data/cars/train"]
    assert again.metrics == whole.metrics


def test_divergence_of_one_is_a_failure_of_one(tiny, monkeypatch):
    (a, a_test), (b, b_test) = pair("birds", 1), pair("cars", 2)
    run = Linear.run

    def diverging(self, encoder, data, config=None):
        if "birds" in data.train.spec:
            raise HealthError("it diverged")
        return run(self, encoder, data, config)

    monkeypatch.setattr(Linear, "run", diverging)
    report = evaluate("transfer", tiny, (a, b), (a_test, b_test), linear={"epochs": 2}, **FAST)
    assert report.details["failed"] == {"birds": "it diverged"}


def test_names_pairs_and_options_are_checked(tiny):
    (a, a_test) = pair("birds", 1)
    assert set_name("data/birds/train") == "birds" and set_name("photos:test") == "photos"
    assert set_name("/x/cifar/train.npz") == "cifar" and set_name("train") == "train"
    twice = evaluate("transfer", tiny, (a, a), (a_test, a_test), engine="knn", **FAST)
    assert list(twice.metrics)[:2] == ["birds/top1", "birds-2/top1"]
    named = evaluate("transfer", tiny, (a,), (a_test,), engine="knn", names=("mine",), **FAST)
    assert "mine/top1" in named.metrics
    with pytest.raises(ConfigError, match="2 train and 1 test"):
        evaluate("transfer", tiny, (a, a), (a_test,), **FAST)
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        evaluate("transfer", tiny, (a,), (a_test,), engine="liner")
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        evaluate("transfer", tiny, (a,), (a_test,), linear={"epoch": 3})
    with pytest.raises(ConfigError, match="3 metrics were given"):
        evaluate("transfer", tiny, (a,), (a_test,), metrics=("top1",) * 3, **FAST)
    assert one_or_more("transfer", ["a"]) == ("a",)
    assert len(Transfer.open((a, "/nowhere/at/all"), None)) == 2
