import dataclasses

import cv2
import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, ImprintError
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.data.sources import open_source
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run
from imprint.train.pretext import pretext_accuracy


def noise(count=40):
    return ArraySource(np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8))


def trained(method, folder, images, val=None, **changes):
    config = recipe(f"{method}/debug")
    data = dataclasses.replace(config.data, val=val)
    config = dataclasses.replace(config, device="cpu", workers=1, data=data, **{"length": Steps(2), **changes})
    return pretrain_run(config, folder / method, source=images)


@pytest.fixture
def held_out(tmp_path):
    """A folder of other images, lit from above."""
    rng = np.random.default_rng(1)
    (tmp_path / "val").mkdir()
    for n in range(30):
        picture = np.linspace(230, 20, 32)[:, None, None] + rng.integers(-20, 20, (32, 32, 3))
        cv2.imwrite(str(tmp_path / "val" / f"{n}.png"), picture.clip(0, 255).astype(np.uint8))
    return str(tmp_path / "val")


def answers(run):
    return [line for line in run.metrics() if any(name.startswith("pretext/") for name in line)]


def test_answers_are_counted_once_per_image_and_the_same_every_time(tmp_path):
    images = noise()
    run = trained("rotation", tmp_path, images)
    found = pretext_accuracy(run, images, batch_size=16)
    assert 0 <= found <= 100 and (found * 40 * 4 / 100) == pytest.approx(round(found * 40 * 4 / 100))
    assert pretext_accuracy(run, images, batch_size=40) == pytest.approx(found)


def test_a_method_without_right_answers_is_refused(tmp_path):
    images = noise()
    with pytest.raises(ConfigError, match="simclr"):
        pretext_accuracy(trained("simclr", tmp_path, images), images)


@pytest.mark.parametrize(("method", "chance"), [("rotation", 25.0), ("jigsaw", None)])
def test_a_run_says_how_well_it_solves_its_task_on_held_out_images(method, chance, tmp_path, held_out):
    run = trained(method, tmp_path, noise(), held_out, probe_every=Steps(1))
    lines = answers(run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[-1]["pretext/accuracy"] == pytest.approx(pretext_accuracy(run, open_source(held_out)))
    assert lines[-1]["pretext/chance"] == pytest.approx(chance or 100 / run.config.method.permutations)


def test_what_is_said_is_what_was_learned(tmp_path, held_out):
    """Light from above is learned in a few steps, and then recognised in other images."""
    rng = np.random.default_rng(0)
    lit = np.linspace(230, 20, 32)[None, :, None, None] + rng.integers(-20, 20, (64, 32, 32, 3))
    images = ArraySource(lit.clip(0, 255).astype(np.uint8))
    run = trained("rotation", tmp_path, images, held_out, length=Steps(40), probe_every=Steps(40))
    first, last = (line["pretext/accuracy"] for line in answers(run))
    assert first < 45 and last > 60


def test_without_held_out_images_or_right_answers_nothing_is_said(tmp_path, held_out):
    assert answers(trained("rotation", tmp_path, noise(), probe_every=Steps(2))) == []
    assert answers(trained("simclr", tmp_path, noise(), held_out, probe_every=Steps(2))) == []


def test_asking_changes_nothing(tmp_path, held_out):
    asked = trained("jigsaw", tmp_path / "a", noise(), held_out, probe_every=Steps(1))
    left = trained("jigsaw", tmp_path / "b", noise())
    assert len(answers(asked)) == 3 and answers(left) == []
    a, b = (run.checkpoints.latest().tensors("model") for run in (asked, left))
    assert a.keys() == b.keys() and [n for n in a if not torch.equal(a[n], b[n])] == []


def test_held_out_images_that_are_not_there_stop_a_run_before_it_begins(tmp_path):
    with pytest.raises(ImprintError, match="nowhere"):
        trained("rotation", tmp_path, noise(), str(tmp_path / "nowhere"), probe_every=Steps(2))
    assert not list((tmp_path / "rotation").glob("checkpoints/*"))
