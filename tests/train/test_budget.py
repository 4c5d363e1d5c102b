from __future__ import annotations

import dataclasses

import pytest

from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps
from imprint.core.schedules import Schedule
from imprint.train.budget import fitted, shrunk
from imprint.train.loop import train


def test_total_is_what_is_left_divided_by_a_step(tiny):
    config = tiny(length=Epochs(100), budget=100.0)
    fixed = fitted(config, Progress(0, 300, 3), budget=100.0, spent=8.0, step_seconds=0.5, probe_seconds=0.0)
    assert fixed.length == Steps(180)  # (100 - 2 - 8) / 0.5
    assert fixed.budget is None


def test_durations_keep_their_share_of_a_shorter_run_and_are_never_stretched(tiny):
    config = tiny("dino", length=Epochs(100), budget=1.0)
    method = dataclasses.replace(
        config.method,
        freeze_prototypes=Epochs(1),
        teacher_temp=Schedule(start=0.07, shape="constant", warmup=Epochs(30), warmup_from=0.04),
    )
    optim = dataclasses.replace(config.optim, lr=dataclasses.replace(config.optim.lr, warmup=Epochs(10)))
    config = dataclasses.replace(config, method=method, optim=optim)
    clock = Progress(0, 1000, 10)
    short = fitted(config, clock, budget=1.0, spent=0.0, step_seconds=0.0098, probe_seconds=0.0)
    assert short.length == Steps(100)
    assert short.optim.lr.warmup == Epochs(1.0)
    assert short.method.teacher_temp.warmup == Epochs(3.0)
    assert short.method.freeze_prototypes == Epochs(0.1)
    long = fitted(config, clock, budget=1.0, spent=0.0, step_seconds=0.0001, probe_seconds=0.0)
    assert long.length == Steps(9800)
    assert long.optim == config.optim
    assert long.method == config.method


@pytest.mark.parametrize(("wanted", "kept"), [(Steps(100), Steps(10)), (Steps(4), Steps(4)), (Steps(0), Steps(0))])
def test_a_warm_up_keeps_a_twentieth_of_a_much_shorter_run(tiny, wanted, kept):
    config = tiny("dino", length=Epochs(10_000), budget=1.0)
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, lr=dataclasses.replace(config.optim.lr, warmup=wanted))
    )
    clock = Progress(0, 100_000, 10)
    short = fitted(config, clock, budget=1.0, spent=0.0, step_seconds=0.0049, probe_seconds=0.0)
    assert short.length == Steps(200)
    assert short.optim.lr.warmup == kept


def test_probes_are_paid_from_the_budget_and_take_at_most_a_tenth(tiny):
    config = tiny(length=Steps(1000), budget=100.0, probe_every=Steps(10))
    fixed = fitted(config, Progress(0, 1000, 10), budget=100.0, spent=0.0, step_seconds=0.1, probe_seconds=2.0)
    assert fixed.length == Steps(880)  # five probes of 2 s: 98 - 10 s
    assert fixed.probe_every == Steps(176)
    cheap = fitted(config, Progress(0, 1000, 100), budget=100.0, spent=0.0, step_seconds=0.1, probe_seconds=0.01)
    assert cheap.probe_every == Steps(9)  # still a hundred of them


def test_a_budget_that_holds_no_step_is_refused(tiny):
    with pytest.raises(ConfigError, match="does not hold one step"):
        fitted(tiny(), Progress(0, 8, 3), budget=1.0, spent=0.99, step_seconds=0.5, probe_seconds=0.0)


def test_shrunk_reaches_nested_durations_only():
    schedule = Schedule(start=1.0, warmup=Steps(10), milestones=(Epochs(4), Steps(7)))
    assert shrunk(schedule, 0.5) == Schedule(start=1.0, warmup=Steps(5), milestones=(Epochs(2), Steps(4)))
    assert shrunk(schedule, 1.0) is schedule


def test_a_run_fits_its_budget_with_schedules_complete_and_repeats_from_its_config(
    tmp_path, tiny, source, weights, same
):
    train(tiny("mae", length=Steps(1)), tmp_path / "first", source=source)  # imports and compiles outside the budget
    # checkpoint_every is far apart so that the run is nothing but steps
    config = tiny("mae", budget=3.0, length=Epochs(200), checkpoint_every=Steps(10_000), probe_every=Steps(10_000))
    run = train(config, tmp_path / "run", source=source)
    assert run.config.budget is None
    assert isinstance(run.config.length, Steps)
    total = run.config.length.n
    assert run.last_step == total > 3
    losses = [line for line in run.metrics() if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, total + 1))  # measured steps left no trace
    peak = max(line["lr"] for line in losses)
    assert losses[-1]["lr"] < 0.2 * peak
    assert any("steps fit the budget" in line.get("event", "") for line in run.metrics())
    again = train(run.config, tmp_path / "again", source=source)
    same(weights(run.path), weights(again.path))
