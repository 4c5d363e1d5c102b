"""Runs of several stages: what passes on, where they lie, how they go on."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from imprint.backbones.load import load_encoder
from imprint.core.errors import CheckpointError, ConfigError, DataError
from imprint.core.progress import Epochs, Steps
from imprint.core.stages import begun, home
from imprint.data.arrays import ArraySource
from imprint.methods.simclr import SimCLR
from imprint.methods.simclr_v2 import SimCLRv2
from imprint.recipes.book import recipe, stages_of
from imprint.train.entry import pretrain_run
from imprint.train.run import Run, read_stages
from imprint.train.stages import rebuilt, split_budget
from imprint.viz.report import build_report


def plan(**changes):
    return tuple(
        dataclasses.replace(stage, device="cpu", precision="fp32", workers=1, **changes)
        for stage in stages_of("simclr_v2/debug")
    )


def model(path):
    return Run.open(path).checkpoints.latest().tensors("model")


@pytest.fixture(scope="module")
def source():
    """Noise of four classes."""
    rng = np.random.default_rng(3)
    return ArraySource(rng.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8), np.arange(48) % 4)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stages") / "run"
    pretrain_run(plan(), folder, source=source)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run at another place."""
    return shutil.copytree(finished, tmp_path / "moved")


def test_every_stage_is_an_ordinary_run_and_the_whole_is_an_encoder(finished):
    assert [stage.name for stage in begun(finished)] == ["stage-1", "stage-2", "stage-3"]
    for stage in begun(finished):
        run = Run.open(stage)
        assert run.finished and run.last_step == 8 and load_encoder(str(stage)).embed_dim == 32
    whole, last = load_encoder(str(finished)), load_encoder(str(finished / "stage-3"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), last.state_dict().values(), strict=True))
    assert Run.open(finished).path == finished / "stage-3" and home(finished / "stage-3") == finished
    assert read_stages(finished) == plan()


def test_the_number_of_classes_is_found_and_written_down(finished):
    classes = [json.loads((stage / "config.json").read_text())["method"]["classes"] for stage in begun(finished)]
    assert classes == [0, 4, 4]  # pretraining has no classifier


def test_the_second_stage_begins_with_the_weights_of_the_first(finished, source):
    """One step at rate 0 leaves what was inherited."""
    first = model(finished / "stage-1")
    method = rebuilt(Run.open(finished / "stage-1"))
    second = SimCLRv2(dataclasses.replace(plan()[1].method, classes=4), fresh_encoder())
    before = {k: v.clone() for k, v in second.state_dict().items()}
    second.inherit(method)
    after = second.state_dict()
    for name, value in after.items():
        if name.startswith("network.backbone."):
            assert torch.equal(value, first[name.replace("network.", "branch.", 1)]), name
        elif name.startswith("network.neck."):
            assert torch.equal(value, first[name.replace("network.neck", "branch.head", 1)]), name
        else:
            assert torch.equal(value, before[name]), name
    assert any(not torch.equal(before[k], after[k]) for k in after)


def fresh_encoder():
    from imprint.train.build import build_method

    return build_method(plan()[0], 3).encoder


def test_the_teacher_is_the_second_stages_network_and_never_moves(finished):
    second, third = model(finished / "stage-2"), model(finished / "stage-3")
    teacher = {name: value for name, value in third.items() if name.startswith("teacher.")}
    assert len(teacher) == len(second)
    for name, value in teacher.items():  # weights and BatchNorm statistics
        assert torch.equal(value, second[name.replace("teacher.", "network.", 1)]), name


def test_labelled_names_are_written_and_equal_in_both_stages(finished):
    names = [(finished / f"stage-{n}" / "labelled.txt").read_text().split() for n in (2, 3)]
    assert names[0] == names[1] and len(names[0]) == 24
    assert not (finished / "stage-1" / "labelled.txt").exists()


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_stopped_in_any_stage_and_resumed_equals_unbroken(finished, copied, source, broken, same):
    """The moved folder goes on as well: stages name each other by relative paths."""
    for later in range(broken + 1, 4):
        shutil.rmtree(copied / f"stage-{later}")
    stage = copied / f"stage-{broken}"
    shutil.rmtree(Run.open(stage).checkpoints.path(8))
    for left in (copied / "encoder.safetensors", copied / "encoder.json", stage / "encoder.safetensors"):
        left.unlink()
    if broken < 3:
        with pytest.raises(ConfigError, match=f"come to stage {broken} of 3"):
            Run.open(copied)
    run = pretrain_run(None, copied, resume=True, source=source)
    assert run.path == copied / "stage-3" and run.finished
    for number in (1, 2, 3):
        same(model(finished / f"stage-{number}"), model(copied / f"stage-{number}"))
    assert load_encoder(str(copied)).embed_dim == 32


def test_resuming_a_finished_run_changes_nothing_and_extending_lengthens_the_last_stage(copied, source, same):
    before = model(copied)
    (copied / "encoder.safetensors").unlink()
    pretrain_run(None, copied, resume=True, source=source)
    same(before, model(copied))
    assert load_encoder(str(copied)).embed_dim == 32
    run = pretrain_run(None, copied, extend=Steps(2), source=source)
    assert run.last_step == 10 and Run.open(copied / "stage-2").last_step == 8


def test_a_run_in_the_way_is_never_written_over(copied, source):
    with pytest.raises(ConfigError, match="already holds a run"):
        pretrain_run(plan(), copied, source=source)


def test_what_later_stages_lack_is_said_before_the_first_begins(tmp_path, source):
    bare = ArraySource(np.zeros((48, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"stage 2 \(finetune\).*no labels"):
        pretrain_run(plan(), tmp_path / "a", source=bare)
    with pytest.raises(ConfigError, match="--stage-2.batch-size 24 or less"):
        pretrain_run(plan(batch_size=32), tmp_path / "b", source=source)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_stage_starts_from_finished_runs_only(copied, source, tmp_path):
    (copied / "stage-2" / "encoder.safetensors").unlink()
    stage = dataclasses.replace(plan()[2], start=str(copied / "stage-2"))
    with pytest.raises(CheckpointError, match="not finished"):
        pretrain_run(stage, tmp_path / "run", source=source)
    with pytest.raises(ConfigError, match="no run at"):
        pretrain_run(dataclasses.replace(stage, start="../nowhere"), tmp_path / "run", source=source)


def test_the_default_is_to_go_on_from_ones_own_weights(tmp_path, source, tiny):
    first = pretrain_run(tiny("simclr", length=Steps(2)), tmp_path / "first", source=source)
    second = tiny("simclr", length=Steps(1), start="../first")
    second = dataclasses.replace(
        second, optim=dataclasses.replace(second.optim, lr=dataclasses.replace(second.optim.lr, base=0.0))
    )
    run = pretrain_run(second, tmp_path / "second", source=source)
    a, b = model(first.path), model(run.path)
    assert all(torch.equal(a[k], b[k]) for k in a if "running" not in k and "tracked" not in k)
    dino = tiny("dino", length=Steps(1), start="../first")
    with pytest.raises(ConfigError, match="does not say how to start from a SimCLR"):
        pretrain_run(dino, tmp_path / "third", source=source)
    assert isinstance(rebuilt(first), SimCLR)


def test_a_budget_is_split_by_shares():
    stages = plan()
    parts = [dataclasses.replace(s, share=w) for s, w in zip(stages, (2.0, 1.0, 1.0), strict=True)]
    assert [s.budget for s in split_budget(tuple(parts), 60.0)] == [30.0, 15.0, 15.0]
    with pytest.raises(ConfigError, match="positive share"):
        split_budget((dataclasses.replace(stages[0], share=0.0), *stages[1:]), 60.0)


def test_a_budget_ends_every_stage_in_time(tmp_path, source):
    pretrain_run(plan(length=Steps(1))[0], tmp_path / "first", source=source)  # imports outside the budget
    stages = split_budget(plan(length=Epochs(500)), 9.0)
    pretrain_run(stages, tmp_path / "run", source=source)
    done = [Run.open(s) for s in begun(tmp_path / "run")]
    assert len(done) == 3 and all(run.finished for run in done)
    planned = 500 * len(source) // stages[0].batch_size
    for run in done:  # each planned its own steps, fewer than the recipe's length
        assert 0 < run.last_step < planned
        assert any("fit the budget of 3 s" in str(line.get("event")) for line in run.metrics())


def test_the_report_is_a_page_over_all_stages(copied):
    page = build_report(copied, images=16, workers=1, device="cpu")
    text = page.read_text()
    assert page == copied / "report.html"
    for number, title in enumerate(("pretrain", "finetune", "distill"), 1):
        assert (copied / f"stage-{number}" / "report.html").exists()
        assert f'href="stage-{number}/report.html"' in text and title in text


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        ("beit/debug", {"tokenizer": "dvae"}, "there is none"),
        ("cae/debug", {"target": "tokens", "tokenizer": "previous"}, "run before it"),
        ("splitmask/debug", {"tokenizer": "dvae"}, "has no tokenizer"),
        ("maskfeat/debug", {"target": "features"}, "needs an encoder to imitate"),
        ("dinov2/debug", {"teacher_mode": "frozen"}, "needs a trained teacher"),
    ],
)
def test_what_only_an_earlier_run_can_give_is_asked_for_before_anything_is_written(tmp_path, spec, changes, said):
    config = recipe(spec)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, **changes), device="cpu", workers=1)
    images = ArraySource(np.random.default_rng(0).integers(0, 255, (48, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match=said):
        pretrain_run(config, tmp_path / "run", source=images)
    assert not (tmp_path / "run" / "config.json").exists()
