import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from imprint.core.codec import from_json, to_json
from imprint.core.errors import ConfigError
from imprint.core.progress import Duration, Epochs, Steps
from imprint.core.schedules import Schedule, cosine


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    length: Duration = Epochs(1)
    schedule: Schedule = field(default_factory=lambda: cosine(1.0, 0.0))
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[str, ...] = ()
    maybe: int | None = None


def test_round_trip_through_json_text():
    value = Outer(name="x", inner=Inner(rate=2.0, kind="b"), length=Steps(5), many=("p", "q"), maybe=3)
    assert from_json(Outer, json.loads(json.dumps(to_json(value)))) == value


def test_missing_keys_take_defaults_and_required_ones_are_named():
    assert from_json(Outer, {"name": "y"}) == Outer(name="y")
    with pytest.raises(ConfigError, match="missing name"):
        from_json(Outer, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "inner": {"rat": 1}}, r"config.inner: unknown key 'rat'. Did you mean 'rate'"),
        ({"name": "x", "inner": {"kind": "c"}}, "config.inner.kind"),
        ({"name": 3}, "config.name: expected str"),
        ({"name": "x", "pair": [1]}, "expected 2 values, got 1"),
        ({"name": "x", "length": "5"}, "30ep"),
        ({"name": "x", "maybe": "3"}, "config.maybe"),
        ({"name": "x", "maybe": True}, "config.maybe"),
        ([], "expected an object"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Outer, data)
