from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from imprint.core.errors import CheckpointError, ConfigError, Preempted
from imprint.core.progress import Epochs, Steps
from imprint.train import loop
from imprint.train.loop import train
from imprint.train.run import Run
from imprint.train.step import Stepper

METHODS = ("simclr", "dino", "mae")


def stop_after(monkeypatch, steps: int, act) -> None:
    """Call `act` inside the step with this number."""
    real = Stepper.__call__

    def step(self, batch, t):
        if t.step == steps:
            act()
        return real(self, batch, t)

    monkeypatch.setattr(Stepper, "__call__", step)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_leaves_everything(tmp_path, tiny, source, name):
    run = train(tiny(name, probe_every=Steps(4)), tmp_path / "run", source=source)
    assert run.finished
    assert run.last_step == 8
    lines = run.metrics()
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    for key in ("epoch", "time", "lr", "wd", "images_per_s", "data_wait", "memory_mb", "grad_norm"):
        assert all(isinstance(line[key], float) for line in steps), key
    probes = [line for line in lines if "rank/rankme" in line]
    assert [line["step"] for line in probes] == [0, 4, 8]
    assert all("probe/knn_top1" in line and "probe/linear_top1" in line for line in probes)
    views = load_file(run.path / "samples" / "views.safetensors")
    assert views["global"].dtype == torch.uint8
    assert views["global"].shape[1] == 16
    pictures = run.path / "samples" / "reconstruct.safetensors"
    assert pictures.exists() == (name == "mae")
    if name == "mae":
        assert all(0 <= float(v.min()) <= float(v.max()) <= 1 for v in load_file(pictures).values())
    encoder = run.encoder()
    with torch.no_grad():
        assert torch.isfinite(encoder(torch.randn(2, 3, 32, 32)).pooled_BD).all()
    assert any((run.path / "tensorboard").iterdir())
    assert Run.open(run.path).config == run.config


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_and_resumed_run_is_the_unbroken_one(tmp_path, tiny, source, weights, same, monkeypatch, name):
    config = tiny(name, log_every=3, length=Steps(10))
    whole = train(config, tmp_path / "whole", source=source)
    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted, match="step 5 of 10"):
            train(config, tmp_path / "broken", source=source)
    assert Run.open(tmp_path / "broken").last_step == 5
    assert not Run.open(tmp_path / "broken").finished
    resumed = train(None, tmp_path / "broken", resume=True, source=source)
    same(weights(whole.path), weights(resumed.path))
    same(whole.encoder().state_dict(), resumed.encoder().state_dict())

    def numbers(run):  # all that is logged but timings
        timing = {"time", "images_per_s", "data_wait", "memory_mb"}
        return [{k: v for k, v in line.items() if k not in timing} for line in run.metrics() if "loss" in line]

    assert numbers(whole) == numbers(resumed)


def test_the_number_of_workers_changes_nothing(tmp_path, tiny, source, weights, same):
    runs = [train(tiny(workers=n, length=Steps(4)), tmp_path / str(n), source=source).path for n in (1, 2, 4)]
    for path in runs[1:]:
        same(weights(runs[0]), weights(path))


def test_another_seed_changes_the_weights(tmp_path, tiny, source, weights):
    first, second = (
        weights(train(tiny(seed=s, length=Steps(2)), tmp_path / str(s), source=source).path) for s in (0, 1)
    )
    assert not all(torch.equal(first[k], second[k]) for k in first)


def test_dropout_does_not_depend_on_where_a_run_was_cut(tmp_path, tiny, source, weights, same, monkeypatch):
    config = tiny("mae", checkpoint_every=Steps(1))
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, drop_path=0.5))
    whole = train(config, tmp_path / "whole", source=source)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Preempted):
            train(config, tmp_path / "broken", source=source)
    torch.manual_seed(999)
    train(None, tmp_path / "broken", resume=True, source=source)
    same(weights(whole.path), weights(tmp_path / "broken"))


def test_accumulation_equals_one_pass_for_a_loss_without_batch_statistics(tmp_path, tiny, source, weights):
    base = tiny("mae", length=Steps(3))
    # SGD, since Adam turns the rounding noise of vanishing gradients into whole steps.
    optim = dataclasses.replace(base.optim, name="sgd", lr=dataclasses.replace(base.optim.lr, base=0.1))
    one, two = (
        weights(train(dataclasses.replace(base, optim=optim, accumulate=n), tmp_path / str(n), source=source).path)
        for n in (1, 4)
    )
    for name in (k for k in one if k.startswith("model:")):
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_a_finished_run_resumes_to_itself_and_extends(tmp_path, tiny, source, weights, same):
    config = tiny(length=Epochs(2))
    run = train(config, tmp_path / "run", source=source)
    before = weights(run.path)
    again = train(None, run.path, resume=True, source=source)
    same(before, weights(again.path))
    longer = train(None, run.path, extend=Epochs(1), source=source)
    assert longer.config.length == Epochs(3)
    assert longer.last_step == 9
    assert longer.finished
    events = [line["event"] for line in longer.metrics() if "event" in line]
    assert "extended" in events
    assert [line["step"] for line in longer.metrics() if "loss" in line] == list(range(1, 10))
    assert any(not torch.equal(before[k], v) for k, v in weights(run.path).items())


def test_extending_an_unfinished_run_is_refused(tmp_path, tiny, source, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            train(tiny(), tmp_path / "run", source=source)
    with pytest.raises(ConfigError, match="finish it first"):
        train(None, tmp_path / "run", extend=Epochs(1), source=source)


def test_a_folder_with_a_run_is_not_written_over(tmp_path, tiny, source):
    train(tiny(length=Steps(1)), tmp_path / "run", source=source)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tiny(length=Steps(1)), tmp_path / "run", source=source)


def test_resuming_nothing_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        train(None, tmp_path / "nowhere", resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        train(None, tmp_path / "empty", resume=True)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, tiny, source):
    run = train(tiny(length=Steps(2)), tmp_path / "run", source=source)
    path = run.path / "config.json"
    data = json.loads(path.read_text())
    data["optim"]["lr"]["base"] = 5.0
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"optim\.lr\.base: 0\.3 and 5\.0"):
        train(None, run.path, resume=True, source=source)


def test_a_damaged_newest_checkpoint_falls_back_and_ends_the_same(tmp_path, tiny, source, weights, same, capfd):
    run = train(tiny(length=Steps(8), checkpoint_every=Steps(3), keep=3), tmp_path / "run", source=source)
    expected = weights(run.path)
    file = run.checkpoints.path(8) / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    train(None, run.path, resume=True, source=source)
    same(expected, weights(run.path))
    text = capfd.readouterr().err
    assert "step-00000008 is damaged" in text
    assert "Falling back to step 6" in text


def test_a_batch_that_does_not_split_is_refused(tmp_path, tiny, source):
    config = tiny()
    object.__setattr__(config, "accumulate", 3)  # as when torchrun starts more processes than `devices` says
    with pytest.raises(ConfigError, match="use a multiple of 3"):
        train(config, tmp_path / "run", source=source)


def test_the_best_checkpoint_by_knn_is_kept(tmp_path, tiny, source, monkeypatch):
    scores = iter([10.0, 30.0, 90.0, 40.0, 50.0])

    class Scripted:
        main, rank_bound = "probe/knn_top1", 8

        def __init__(self, *args):
            pass

        def judge(self, method):
            return {"probe/knn_top1": next(scores), "rank/rankme": 6.0}

    monkeypatch.setattr(loop, "online_probe", Scripted)
    run = train(tiny(length=Steps(8), probe_every=Steps(2), checkpoint_every=Steps(2)), tmp_path / "run", source=source)
    assert run.checkpoints.best_step == 4
    assert run.checkpoints.steps() == [4, 6, 8]


@pytest.mark.parametrize("precision", ["bf16"])
def test_low_precision_trains_and_resumes(tmp_path, tiny, source, precision, weights, same, monkeypatch):
    config = tiny("mae", precision=precision)
    whole = train(config, tmp_path / "whole", source=source)
    with monkeypatch.context() as patch:
        stop_after(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            train(config, tmp_path / "broken", source=source)
    same(weights(whole.path), weights(train(None, tmp_path / "broken", resume=True, source=source).path))


def test_the_loop_is_a_story_of_at_most_300_lines():
    with open(loop.__file__, encoding="utf-8") as file:
        assert len(file.readlines()) <= 300
