import math

import pytest

from imprint.core.progress import Epochs, Progress, Steps
from imprint.core.schedules import Schedule, constant, cosine, linear

RUN = Progress(0, 100, 10)


def test_cosine_starts_ends_and_halves():
    schedule = cosine(2.0, 1.0)
    assert schedule(RUN) == 2.0
    assert schedule(RUN.at(50)) == pytest.approx(1.5)
    assert schedule(RUN.at(100)) == pytest.approx(1.0)
    assert schedule(RUN.at(140)) == pytest.approx(1.0)  # kept after the end


def test_warmup_ends_one_step_later_or_at_its_last_step():
    plain = cosine(1.0, 0.0, warmup=Epochs(1))
    assert [plain(RUN.at(s)) for s in (0, 5, 10)] == [0.0, 0.5, 1.0]
    linspace = Schedule(start=1.0, warmup=Steps(11), warmup_reaches_start=True)
    assert linspace(RUN.at(10)) == 1.0 == linspace(RUN.at(11))


def test_linear_constant_milestones_and_freeze():
    assert linear(1.0, 0.0)(RUN.at(25)) == 0.75
    assert constant(0.3)(RUN.at(77)) == 0.3
    steps = Schedule(start=1.0, shape="milestones", milestones=(Steps(10), Steps(20)), gamma=0.1)
    assert [steps(RUN.at(s)) for s in (9, 10, 20)] == pytest.approx([1.0, 0.1, 0.01])
    frozen = Schedule(start=1.0, freeze=Steps(5))
    assert frozen(RUN.at(4)) == 0.0 and frozen(RUN.at(5)) == 1.0


def test_stretched_schedule_is_cut_off():
    assert cosine(1.0, 0.0)(RUN.at(100)) == 0.0
    stretched = Schedule(start=1.0, stretch=1.25)
    assert stretched(RUN.at(100)) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.8)))


def test_per_epoch_is_constant_within_an_epoch():
    schedule = Schedule(start=0.07, shape="constant", warmup=Epochs(4), warmup_from=0.04, per_epoch=True)
    values = {schedule(RUN.at(s)) for s in range(10, 20)}
    assert len(values) == 1


def test_scaled_multiplies_every_value():
    schedule = cosine(1.0, 0.1, warmup=Steps(10), warmup_from=0.5)
    for step in (0, 5, 50, 100):
        assert schedule.scaled(3.0)(RUN.at(step)) == pytest.approx(3 * schedule(RUN.at(step)))
