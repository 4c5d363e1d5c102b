"""What a killed evaluation left is found by the same one, and by no other."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from imprint.data.arrays import ArraySource
from imprint.evals.protocol import EvalData, ProtocolConfig, describe
from imprint.evals.report import question
from imprint.evals.workspace import Workspace


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path))
    return tmp_path


def test_the_same_evaluation_finds_its_parts_and_another_does_not(tiny, train, test):
    data, config = EvalData(train=train, test=test), ProtocolConfig()
    space = Workspace.open("toy", tiny, data, config)
    space.remember("a part / with signs", {"x": 1.5})
    faster = dataclasses.replace(config, batch_size=3, workers=1)
    assert Workspace.open("toy", tiny, data, faster).recall("a part / with signs") == {"x": 1.5}
    others = [
        Workspace.open("other", tiny, data, config),
        Workspace.open("toy", tiny, EvalData(train=test, test=train), config),
        Workspace.open("toy", tiny, data, dataclasses.replace(config, seed=1)),
    ]
    tiny.weight.data[0, 0] += 1
    others.append(Workspace.open("toy", tiny, data, config))
    assert all(other.recall("a part / with signs") is None for other in others)
    assert len({other.folder for other in others} | {space.folder}) == 5


def test_other_labels_of_the_same_images_are_another_evaluation(tiny, train):
    relabelled = ArraySource(train._images, np.roll(train.labels, 1), classes=train.classes, name="train")
    renamed = ArraySource(train._images, train.labels, classes=("a", "b", "c", "d"), name="train")
    assert relabelled.fingerprint == train.fingerprint  # of the images, whose features are the same
    spaces = [Workspace.open("toy", tiny, EvalData(train=s), ProtocolConfig()) for s in (train, relabelled, renamed)]
    assert len({space.folder for space in spaces}) == 3
    described = [{"protocol": "knn", "data": {"train": describe(s)}} for s in (train, relabelled, renamed)]
    assert len({question(report) for report in described}) == 3


def test_a_twin_that_ends_first_does_not_stop_the_other(tiny, train, monkeypatch):
    """Two processes of one evaluation share the folder; the first to end removes it, perhaps while the other writes."""
    space = Workspace.open("toy", tiny, EvalData(train=train), ProtocolConfig())
    replace, calls = os.replace, []

    def removed_once(source, target):
        calls.append(target)
        if len(calls) in (1, 3):
            shutil.rmtree(space.folder)
        replace(source, target)

    monkeypatch.setattr(os, "replace", removed_once)
    space.save_state("s", {"step": 3})
    assert space.load_state("s") == {"step": 3}
    space.remember("r", 1)
    assert space.recall("r") == 1 and len(calls) == 4
    assert [p.name for p in space.folder.iterdir()] == ["r.json"]  # no half-written file is left


def test_parts_are_apart_and_clear_removes_all(tiny, train, cache):
    space = Workspace.open("toy", tiny, EvalData(train=train), ProtocolConfig())
    space.part("one").remember("r", 1)
    assert space.part("two").recall("r") is None and space.part("one").recall("r") == 1
    (space.part("one").folder / "r.json").write_text("{")
    assert space.part("one").recall("r") is None  # damaged counts as not there
    space.clear()
    assert not list((cache / "evaluations").iterdir())


def test_without_a_cache_nothing_is_kept(tiny, train, cache):
    space = Workspace.open("toy", tiny, EvalData(train=train), ProtocolConfig(cache=False))
    space.remember("r", 1)
    space.save_state("s", {})
    assert space.recall("r") is None and space.load_state("s") is None and not list(cache.iterdir())
