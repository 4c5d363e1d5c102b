"""A frozen teacher is asked once about every image where views allow it, and nothing else changes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from imprint.core.errors import CheckpointError, DataError
from imprint.data.arrays import ArraySource
from imprint.dist.world import World
from imprint.methods.distill import Answers as Asked
from imprint.recipes.book import stages_of
from imprint.train import teacher_cache
from imprint.train.entry import pretrain_run as train
from imprint.train.run import Run
from imprint.train.teacher_cache import Answers, Taught, file_of, share_of

IMAGES = 44  # not a multiple of the batch of 16


@pytest.fixture(scope="module")
def images() -> ArraySource:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (IMAGES, 6, 6, 3), dtype=np.uint8)
    return ArraySource(coarse.repeat(8, 1).repeat(8, 2), np.arange(IMAGES) % 3)


def plans(**method):
    teacher, student = stages_of("distill/debug")
    student = dataclasses.replace(student, method=dataclasses.replace(student.method, **method))
    return tuple(dataclasses.replace(s, device="cpu", workers=1, precision="fp32") for s in (teacher, student))


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory):
    """A finished run of the teacher's stage."""
    return train(dataclasses.replace(plans()[0], stage=""), tmp_path_factory.mktemp("teacher") / "run", source=images)


@pytest.fixture
def asked(monkeypatch):
    """How many images the teacher was shown."""
    shown = []
    real = Asked.forward

    def count(self, images_BCHW):
        shown.append(len(images_BCHW))
        return real(self, images_BCHW)

    monkeypatch.setattr(Asked, "forward", count)
    return shown


def student(teacher, folder, images, **method):
    plan = dataclasses.replace(plans(**method)[1], stage="", start=str(teacher.path))
    return train(plan, folder, source=images)


def weights(run: Run):
    return run.checkpoints.latest().tensors("model")


def losses(run: Run):
    return [m["loss"] for m in run.metrics() if "loss" in m]


def test_kept_answers_equal_asking_each_time_bit_for_bit_with_fewer_calls(teacher, images, tmp_path, asked):
    kept = student(teacher, tmp_path / "kept", images)
    assert asked == [16, 16, 16]  # once about every image, in whole batches; not once in 8 steps
    asked.clear()
    live = student(teacher, tmp_path / "live", images, keep_answers=False)
    assert asked == [16] * 8 and not (live.path / "teacher").exists()
    a, b = weights(kept), weights(live)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert losses(kept) == losses(live)


def test_a_drawn_view_is_shown_to_the_teacher_each_time(teacher, images, tmp_path, asked):
    run = student(teacher, tmp_path / "run", images, crop="random")
    assert asked == [16] * 8 and not (run.path / "teacher").exists()


def test_a_resumed_run_asks_no_more_and_ends_with_the_same_weights(teacher, images, tmp_path, asked):
    whole = student(teacher, tmp_path / "whole", images)
    broken = student(teacher, tmp_path / "broken", images)
    shutil.rmtree(broken.checkpoints.path(8))
    (broken.path / "encoder.safetensors").unlink()
    asked.clear()
    resumed = train(None, broken.path, resume=True, source=images)
    assert asked == []
    a, b = weights(whole), weights(resumed)
    assert all(torch.equal(a[k], b[k]) for k in a) and any(k.startswith("teacher.") for k in a)


def test_a_killed_pass_goes_on_where_it_was(teacher, images, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(teacher_cache, "KEEP_SECONDS", 0.0)
    real, calls = Asked.forward, []

    def dies(self, x):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Asked, "forward", dies)
        student(teacher, tmp_path / "run", images)
    folder = tmp_path / "run" / "teacher"
    assert json.loads((folder / "part.0.json").read_text())["done"] == 32
    with open(file_of(folder, "teacher:logits", 0), "ab") as file:
        file.write(b"torn")  # written after the last note
    asked.clear()
    shutil.move(str(folder), str(tmp_path / "kept"))
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    shutil.move(str(tmp_path / "kept"), str(folder))
    done = student(teacher, tmp_path / "run", images)
    assert asked == [16]  # the rest alone
    whole = student(teacher, tmp_path / "whole", images)
    for name in ("teacher:logits", "teacher:pooled"):
        assert file_of(folder, name, 0).read_bytes() == file_of(whole.path / "teacher", name, 0).read_bytes()
    assert losses(done) == losses(whole)


def test_other_images_or_damaged_files_are_asked_again(teacher, images, tmp_path, asked):
    run = student(teacher, tmp_path / "run", images)
    path = file_of(run.path / "teacher", "teacher:logits", 0)
    key = json.loads((run.path / "teacher" / "answers.json").read_text())["key"]
    assert Answers.stored(run.path / "teacher", key) is not None
    assert Answers.stored(run.path / "teacher", "other") is None
    path.write_bytes(path.read_bytes()[:-4])
    assert Answers.stored(run.path / "teacher", key) is None
    asked.clear()
    shutil.rmtree(run.checkpoints.path(8))
    (run.path / "encoder.safetensors").unlink()
    train(None, run.path, resume=True, source=images)
    assert asked == [16, 16, 16]


def test_a_damaged_image_has_no_answer_and_says_so_when_it_is_asked_for(teacher, images, tmp_path):
    class Damaged(ArraySource):
        def read(self, i):
            if i == 5:
                raise OSError("gone")
            return super().read(i)

    broken = Damaged(np.stack([images.read(i) for i in range(IMAGES)]), np.arange(IMAGES) % 3)
    run = student(teacher, tmp_path / "run", broken)
    folder = run.path / "teacher"
    answers = Answers.stored(folder, json.loads((folder / "answers.json").read_text())["key"])
    rows = answers.rows(np.array([4, 5, 6]))["teacher:logits"]
    assert np.isnan(rows[1]).all() and np.isfinite(rows[[0, 2]]).all()
    with pytest.raises(DataError, match="could not be read when the teacher was asked"):
        Taught(broken, answers).targets(np.array([4, 5]))


def test_parts_of_several_processes_are_one_table(tmp_path):
    rows = np.arange(7 * 3, dtype=np.float32).reshape(7, 3)
    shares = [share_of(World(rank=r, size=3), 7) for r in range(3)]
    assert shares == [(0, 2), (2, 4), (4, 7)]
    for part, (a, b) in enumerate(shares):
        rows[a:b].tofile(file_of(tmp_path, "teacher:logits", part))
    answers = Answers(tmp_path, (0, 2, 4, 7), {"teacher:logits": (3,)})
    index = np.array([6, 0, 3, 3, 1])
    assert np.array_equal(answers.rows(index)["teacher:logits"], rows[index])


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    part = teacher_cache._Part(tmp_path / "teacher", 0, "key")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(CheckpointError, match="No space left.*keep-answers"):
        part.append("teacher:logits", np.zeros((2, 3), np.float32))
