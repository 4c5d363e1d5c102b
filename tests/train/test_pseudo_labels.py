"""Runs of teacher and students: what is labelled, what is written, and what a killed run goes on with."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from imprint.core.errors import CheckpointError, ConfigError, DataError
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.data.labelled import Labelled
from imprint.recipes.book import stages_of
from imprint.train import loop, pseudo_labels
from imprint.train.entry import pretrain_run
from imprint.train.pseudo_labels import COUNTS, LABELS, asked, read
from imprint.train.run import Run
from imprint.train.stages import rebuilt
from imprint.viz.report import build_report

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = COLOURS[labels][:, None, None] + rng.integers(-30, 30, (count, 32, 32, 3))
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def images():
    return ArraySource(*pictures(60))


def plan(steps=4, method=None, student=None, data=None, **changes):
    """The debug recipe; `method` changes both stages, `student` and `data` the second."""
    first, second = stages_of("noisy_student/debug")
    first = dataclasses.replace(first, method=dataclasses.replace(first.method, **(method or {})))
    own = dataclasses.replace(second.method, **(method or {}), **(student or {}))
    second = dataclasses.replace(second, method=own, data=dataclasses.replace(second.data, **(data or {})))
    common = {"device": "cpu", "workers": 1, "length": Steps(steps), "checkpoint_every": Steps(2), **changes}
    return dataclasses.replace(first, **common), dataclasses.replace(second, **common)


def weights(run):
    return run.checkpoints.latest().tensors("model")


def different(a, b):
    assert a.keys() == b.keys()
    return [n for n in a if not torch.equal(a[n], b[n])]


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds") / "run"
    pretrain_run(plan(), folder, source=images)
    return folder


def test_the_labels_are_what_the_teacher_says_without_noise(done, images):
    student, teacher = Run.open(done / "stage-2"), Run.open(done / "stage-1")
    found = read(student.path / LABELS)
    names = set((student.path / "labelled.txt").read_text().split("\n")) - {""}
    hidden = np.array([i for i in range(60) if images.name(i) not in names])
    assert len(hidden) == 30
    method = rebuilt(teacher)
    wanted = type(method).pseudo_labels(student.config.method)
    said = [asked(method, teacher.config, images.subset(hidden), wanted, teacher.config) for _ in range(2)]
    assert all(np.array_equal(said[0][name], said[1][name]) for name in said[0])
    entries = found["entries"]
    assert np.array_equal(found["decisions"], said[0]["decision"][entries])
    assert np.array_equal(found["soft"][found["rows"]], said[0]["soft"][entries])
    assert np.allclose(found["soft"].astype(np.float32).sum(1), 1, atol=5e-3)
    method.train()  # asking switches noise off again
    again = asked(method, teacher.config, images.subset(hidden), wanted, teacher.config)
    assert np.array_equal(again["soft"], said[0]["soft"])


def test_counts_say_what_the_student_was_given(done):
    summary = json.loads((done / "stage-2" / COUNTS).read_text())
    found = read(done / "stage-2" / LABELS)
    assert summary["labelled"] == summary["unlabelled"] == 30
    assert summary["used"] == np.unique(found["entries"]).size == sum(summary["images_by_class"])
    assert summary["entries"] == found["entries"].size
    assert 0 <= summary["accuracy"] <= 1 and 0 <= summary["accuracy_of_all"] <= 1
    per_class = np.bincount(found["decisions"], minlength=3)
    assert set(per_class[per_class > 0]) == {12}


@pytest.mark.parametrize("soft", [True, False])
def test_a_kill_between_labelling_and_the_first_step_goes_on_with_the_same_labels(images, tmp_path, monkeypatch, soft):
    method = {"soft": soft}
    pretrain_run(plan(method=method), tmp_path / "whole", source=images)
    real = loop.build

    def killed(config, *args, **kwargs):
        if config.start is not None:
            raise KeyboardInterrupt
        return real(config, *args, **kwargs)

    monkeypatch.setattr(loop, "build", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain_run(plan(method=method), tmp_path / "broken", source=images)
    monkeypatch.setattr(loop, "build", real)
    labels = tmp_path / "broken" / "stage-2" / LABELS
    before = labels.read_bytes()
    assert not (tmp_path / "broken" / "stage-2" / "config.json").exists()

    def again(*args, **kwargs):
        raise AssertionError("labelled a second time")

    monkeypatch.setattr(pseudo_labels, "asked", again)
    pretrain_run(None, tmp_path / "broken", resume=True, source=images)
    assert labels.read_bytes() == before == (tmp_path / "whole" / "stage-2" / LABELS).read_bytes()
    assert not list(labels.parent.glob(".*pseudo*"))
    ends = [weights(Run.open(tmp_path / name / "stage-2")) for name in ("whole", "broken")]
    assert different(*ends) == []
    assert ("soft" in read(labels)) == soft


def test_a_kill_while_the_teacher_labels_starts_labelling_again(images, tmp_path, monkeypatch, done):
    real = pseudo_labels.asked
    monkeypatch.setattr(pseudo_labels, "asked", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pretrain_run(plan(), tmp_path / "run", source=images)
    assert not (tmp_path / "run" / "stage-2" / LABELS).exists()
    monkeypatch.setattr(pseudo_labels, "asked", real)
    pretrain_run(None, tmp_path / "run", resume=True, source=images)
    assert different(weights(Run.open(tmp_path / "run" / "stage-2")), weights(Run.open(done / "stage-2"))) == []
    assert not list((tmp_path / "run" / "stage-2").glob(".pseudo*"))


def test_a_run_that_began_refuses_other_labels_or_none(images, tmp_path, done):
    shutil.copytree(done, tmp_path / "run")
    stage = tmp_path / "run" / "stage-2"
    shutil.rmtree(stage / "checkpoints" / sorted(p.name for p in (stage / "checkpoints").iterdir())[-1])
    (stage / "encoder.safetensors").unlink()
    kept = (stage / LABELS).read_bytes()
    (stage / LABELS).unlink()
    with pytest.raises(CheckpointError, match="are missing"):
        pretrain_run(None, tmp_path / "run", resume=True, source=images)
    (stage / LABELS).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(CheckpointError, match="are damaged"):
        pretrain_run(None, tmp_path / "run", resume=True, source=images)
    (stage / LABELS).write_bytes(kept)
    with pytest.raises(CheckpointError, match="other images"):
        pretrain_run(None, tmp_path / "run", resume=True, source=ArraySource(*pictures(60, seed=5)))
    pretrain_run(None, tmp_path / "run", resume=True, source=images)
    assert different(weights(Run.open(stage)), weights(Run.open(done / "stage-2"))) == []


def write(folder, images, labels=None):
    for n, image in enumerate(images):
        path = folder / ("" if labels is None else f"class{labels[n]}") / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[..., ::-1])


def test_a_labelled_folder_and_a_folder_of_unlabelled_images(tmp_path):
    """Grey and damaged images among the unlabelled ones as well; nobody knows how good their labels are."""
    write(tmp_path / "labelled", *pictures(30))
    more, _ = pictures(20, seed=1)
    write(tmp_path / "more", more)
    cv2.imwrite(str(tmp_path / "more" / "grey.png"), more[0][..., 0])
    (tmp_path / "more" / "broken.png").write_bytes(b"no image")
    where = {"train": (str(tmp_path / "labelled"),), "labelled": None, "unlabelled": (str(tmp_path / "more"),)}
    first, second = plan(data={**where, "bad_limit": 0.1}, student={"per_class": 0})
    first = dataclasses.replace(first, data=dataclasses.replace(first.data, train=where["train"], labelled=None))
    pretrain_run((first, second), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "stage-2" / COUNTS).read_text())
    assert summary["labelled"] == 30 and summary["unlabelled"] == 22 and summary["damaged"] == 1
    assert summary["accuracy"] is None and summary["used"] == 21


def test_grey_unlabelled_images_alone_fit_a_teacher_of_colour_images(tmp_path):
    write(tmp_path / "labelled", *pictures(30))
    for n, image in enumerate(pictures(20, seed=1)[0]):
        (tmp_path / "grey").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "grey" / f"{n}.png"), image[..., 0])
    where = {"train": (str(tmp_path / "labelled"),), "labelled": None}
    first, second = plan(steps=2, data={**where, "unlabelled": (str(tmp_path / "grey"),)})
    first = dataclasses.replace(first, data=dataclasses.replace(first.data, **where))
    assert pretrain_run((first, second), tmp_path / "run").finished


def test_what_cannot_work_is_refused_before_the_teacher_trains(images, tmp_path):
    with pytest.raises(ConfigError, match=r"stage 2 \(student\).*--data.unlabelled SRC"):
        pretrain_run(plan(data={"labelled": None}), tmp_path / "a", source=images)
    with pytest.raises(DataError, match="nowhere"):
        pretrain_run(plan(data={"unlabelled": (str(tmp_path / "nowhere"),)}), tmp_path / "b", source=images)
    with pytest.raises(ConfigError, match="--batch-size"):
        pretrain_run(plan(student={"ratio": 100.0}), tmp_path / "c", source=images)
    simclr = stages_of("simclr/debug")[0]
    simclr = dataclasses.replace(simclr, device="cpu", data=dataclasses.replace(simclr.data, unlabelled=("more",)))
    with pytest.raises(ConfigError, match="makes no pseudo-labels"):
        pretrain_run(simclr, tmp_path / "d", source=images)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_is_sure_of_nothing_says_so(images, tmp_path):
    with pytest.raises(DataError, match=r"0\.999 is asked for and 0\.\d+ is the most.*--method.confidence"):
        pretrain_run(plan(student={"confidence": 0.999}), tmp_path / "run", source=images)
    assert not (tmp_path / "run" / "stage-2" / LABELS).exists()


def test_a_student_alone_needs_a_teacher_with_a_classifier(images, tmp_path):
    _, student = plan()
    with pytest.raises(ConfigError, match="--start RUN"):
        pretrain_run(dataclasses.replace(student, start=None), tmp_path / "a", source=images)
    simclr = stages_of("simclr/debug")[0]
    pretrain_run(
        dataclasses.replace(simclr, device="cpu", workers=1, length=Steps(1)), tmp_path / "simclr", source=images
    )
    with pytest.raises(ConfigError, match="simclr has no classifier"):
        pretrain_run(dataclasses.replace(student, start="../simclr"), tmp_path / "b", source=images)


def test_few_images_are_repeated_to_fill_a_batch(images, tmp_path):
    few = Labelled(per_class=2, rest="unlabelled")
    first, second = plan(steps=2, data={"labelled": few}, student={"per_class": 1})
    first = dataclasses.replace(
        first, batch_size=4, data=dataclasses.replace(first.data, labelled=Labelled(per_class=2))
    )
    assert pretrain_run((first, second), tmp_path / "run", source=images).finished


def test_the_report_has_a_table_of_rounds(done):
    page = build_report(done).read_text()
    assert "Rounds" in page and "pseudo-labelled" in page.lower()
    assert "resnet18" in page
    assert "Pseudo-labels" in (done / "stage-2" / "report.html").read_text()


def test_two_processes_label_and_train_as_one(tmp_path):
    images, labels = pictures(600)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    first, second = plan(method={"dropout": 0.0})
    small = Labelled(share=0.1)
    runs = {}
    for devices in (1, 2):
        stages = [
            dataclasses.replace(
                stage,
                devices=devices,
                length=Steps(3),
                optim=dataclasses.replace(stage.optim, name="sgd"),
                data=dataclasses.replace(
                    stage.data,
                    train=(str(tmp_path / "images.npz"),),
                    labelled=dataclasses.replace(small, rest=stage.data.labelled.rest),
                ),
            )
            for stage in (first, second)
        ]
        runs[devices] = tmp_path / str(devices)
        if devices == 2:  # the teacher of one process for both, so that labelling is all that can differ
            shutil.copytree(runs[1] / "stage-1", runs[2] / "stage-1")
            alone = dataclasses.replace(stages[1], start="../stage-1")
            pretrain_run(alone, runs[2] / "stage-2")
        else:
            pretrain_run(tuple(stages), runs[1])
    one, two = (read(run / "stage-2" / LABELS) for run in runs.values())
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    losses = [[m["loss"] for m in Run.open(run / "stage-2").metrics() if "loss" in m] for run in runs.values()]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
