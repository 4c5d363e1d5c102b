"""The result every evaluation protocol returns."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measured number.

    Attributes:
        value: the number, in the unit its name says (`top1` and the like in percent).
        low: lower end of the 95 % interval, or None.
        high: upper end.
        n: number of test samples behind it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, on what, at what cost, and how to measure it again.

    Attributes:
        protocol: protocol name.
        encoder: what was judged.
        data: description of the train and test sources (spec, count, fingerprint).
        metrics: numbers by name; `main` names the one to compare by.
        main: key into metrics.
        details: JSON-ready extras (the grid and what was chosen, per-class figures, settings).
        cost: seconds by phase and `images`.
        command: a command line that repeats it, or "".
    """

    protocol: str
    encoder: str
    data: dict[str, Any]
    metrics: dict[str, Metric]
    main: str
    details: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    command: str = ""

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def save(self, path: Path) -> None:
        """Write the JSON, aside and renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(self.to_json() + "\n", encoding="utf-8")
        temporary.replace(path)
