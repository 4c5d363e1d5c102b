"""Option values as people write them: times, cadences, counts, names from a short list."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from imprint.core.errors import ConfigError, unknown
from imprint.core.progress import Duration, Steps, parse_duration

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|sec|s)\s*")


def budget(text: str) -> float:
    """Read a wall-clock time such as `90s`, `10min`, `1h` or `1h30min`; returns seconds.

    Raises:
        ConfigError: for anything else, zero included.
    """
    rest, seconds = text.strip().lower(), 0.0
    while rest and (match := _TIME.match(rest)):
        seconds += float(match[1]) * _SECONDS[match[2]]
        rest = rest[match.end() :]
    if rest or seconds <= 0:
        raise ConfigError(f"'{text}' is not a time; write it with its unit: 90s, 10min, 1h or 1h30min.")
    return seconds


def cadence(text: str) -> Duration:
    """Read how often something happens: `500` or `500st` is in optimizer steps, `2ep` in epochs.

    Raises:
        ConfigError: for anything else, zero included.
    """
    stripped = text.strip()
    duration = Steps(int(stripped)) if stripped.isdecimal() else parse_duration(stripped)
    if duration.n <= 0:
        raise ConfigError(f"'{text}': a cadence must be longer than nothing; write 500st (steps) or 1ep (epochs).")
    return duration


def at_least(minimum: int, kind: type[int] | type[float] = int) -> Callable[[str], int | float]:
    """Return a reader of numbers that are `minimum` or more (more than it, for floats)."""

    def read(text: str) -> int | float:
        noun = "whole number" if kind is int else "number"
        try:
            value = kind(text)
        except ValueError:
            raise ConfigError(f"'{text}' is not a {noun}.") from None
        if not math.isfinite(value):
            raise ConfigError(f"'{text}' is not a {noun} that a run could reach.")
        if not (value >= minimum if kind is int else value > minimum):
            raise ConfigError(f"{text} is too small; give a {noun} {'from' if kind is int else 'above'} {minimum}.")
        return value

    return read


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """Return a reader of names out of a short list; a wrong one is answered with the nearest."""

    def read(text: str) -> str:
        if text not in known:
            raise unknown(kind, text, known)
        return text

    return read
