"""The result every evaluation protocol returns."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.viz.raster import save_png


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
class Figure:
    """A picture that belongs to a report.

    Attributes:
        name: file name without suffix, unique in the report: letters, digits, `-` and `_`.
        caption: one sentence that says what is to be seen.
        picture: uint8 (H, W, 3).
    """

    name: str
    caption: str
    picture: npt.NDArray[np.uint8] = field(compare=False, repr=False)


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
        figures: pictures; `save` writes them as PNG files beside the JSON, which names them.
    """

    protocol: str
    encoder: str
    data: dict[str, Any]
    metrics: dict[str, Metric]
    main: str
    details: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    command: str = ""
    figures: tuple[Figure, ...] = ()

    def to_json(self, folder: str = "") -> str:
        """Return the report as indented JSON; of figures, caption and file (in `folder`) only."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "figures"}
        plain["metrics"] = {name: dataclasses.asdict(metric) for name, metric in self.metrics.items()}
        plain["figures"] = [
            {"name": f.name, "caption": f.caption, "file": f"{folder}/{f.name}.png" if folder else f"{f.name}.png"}
            for f in self.figures
        ]
        return json.dumps(plain, indent=2)

    def save(self, path: Path) -> None:
        """Write the JSON, aside and renamed, and the figures into the folder `<path without suffix>_figures` first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = path.with_name(f"{path.stem}_figures")
        for figure in self.figures:
            save_png(figure.picture, folder / f"{figure.name}.png")
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(self.to_json(folder.name) + "\n", encoding="utf-8")
        temporary.replace(path)
