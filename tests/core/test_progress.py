import pytest

from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps, parse_duration


@pytest.mark.parametrize(
    ("text", "value"),
    [("30ep", Epochs(30)), ("0.5 epochs", Epochs(0.5)), ("500st", Steps(500)), ("1 step", Steps(1))],
)
def test_durations_are_read(text, value):
    assert parse_duration(text) == value
    assert parse_duration(str(value)) == value


@pytest.mark.parametrize("text", ["30", "ep", "1.5st", "-3ep", "3 hours"])
def test_bad_durations_say_how_to_write_them(text):
    with pytest.raises(ConfigError):
        parse_duration(text)


def test_progress_converts_and_compares():
    t = Progress(step=14, total_steps=70, steps_per_epoch=7)
    assert (t.epoch, t.fraction) == (2, 0.2)
    assert t.steps(Epochs(1.5)) == 10 and t.steps(Steps(3)) == 3
    assert t.before(Epochs(3)) and not t.before(Epochs(2))
    assert t.every(Epochs(1)) and not t.at(13).every(Epochs(1)) and not t.at(0).every(Epochs(1))
    assert t.by_epoch() == Progress(2, 10, 1)
