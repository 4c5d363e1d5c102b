from __future__ import annotations

import pytest

from imprint.cli.values import at_least, budget, cadence, one_of
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Steps


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10min", 600),
        ("10m", 600),
        ("1h", 3600),
        ("1h30min", 5400),
        ("1.5h", 5400),
        ("2d", 172800),
        ("5 MIN", 300),
    ],
)
def test_budgets(text: str, seconds: float) -> None:
    assert budget(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "min", "0s", "-5s", "10 parsecs", "1h-2min", "10min!"])
def test_what_is_no_budget_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="10min"):
        budget(text)


@pytest.mark.parametrize(
    ("text", "duration"), [("500", Steps(500)), ("500st", Steps(500)), ("2ep", Epochs(2)), ("0.5ep", Epochs(0.5))]
)
def test_cadences(text: str, duration: Epochs | Steps) -> None:
    assert cadence(text) == duration


@pytest.mark.parametrize("text", ["0", "0ep", "often", "-1"])
def test_what_is_no_cadence(text: str) -> None:
    with pytest.raises(ConfigError, match="ep"):
        cadence(text)


def test_counts() -> None:
    assert at_least(1)("3") == 3
    assert at_least(0)("0") == 0
    assert at_least(0, float)("0.5") == 0.5
    for read, text in (
        (at_least(1), "0"),
        (at_least(1), "1.5"),
        (at_least(0, float), "0"),
        (at_least(0, float), "nan"),
        (at_least(0, float), "inf"),
        (at_least(1), "x"),
    ):
        with pytest.raises(ConfigError, match=text.replace(".", r"\.")):
            read(text)


def test_names_name_the_nearest() -> None:
    assert one_of("precision", ("fp32", "bf16"))("bf16") == "bf16"
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        one_of("precision", ("fp32", "bf16"))("bfp16")
