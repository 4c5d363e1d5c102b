"""A run's metrics as charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imprint.viz.charts import Chart, Series, draw
from imprint.viz.raster import save_png

CLOCK = ("step", "epoch", "time")
Metrics = Sequence[Mapping[str, Any]]

_KNOWN: tuple[tuple[str, tuple[str, ...], str, float], ...] = (
    ("Loss", ("loss",), "", 1.0),
    ("Learning rate", ("lr",), "", 1.0),
    ("Weight decay", ("wd",), "", 1.0),
    ("Images per second", ("images_per_s",), " images/s", 1.0),
    ("Time spent waiting for data", ("data_wait",), " %", 100.0),
    ("Peak memory", ("memory_mb",), " MB", 1.0),
    ("Gradient norm", ("grad_norm",), "", 1.0),
)
_TITLES = {"probe": "Online probes", "pretext": "Its own task, on held-out images", "rank": "Label-free ranks"}

_HELD_OUT = (
    ("Held-out text, nats per token", ("nats", "unigram", "bigram"), ""),
    ("Held-out pairs", ("r@1", "r@10"), " %"),
)
"""Probes that belong together."""


def series(metrics: Metrics, key: str, factor: float = 1.0, name: str | None = None) -> Series:
    """Return one metric over steps; lines without it are skipped, non-numbers become gaps."""
    points = [(float(m["step"]), _number(m[key]) * factor) for m in metrics if key in m and "step" in m]
    points.sort(key=lambda p: p[0])
    return Series(name or key, tuple(p[0] for p in points), tuple(p[1] for p in points))


def curves(metrics: Metrics) -> list[Chart]:
    """Return the charts of a run: loss, probes, ranks, the clockwork, then one per other metric, in that order.

    Probes that are accuracies share a chart; ranks, whose scales differ, get one each.
    """
    keys = list(dict.fromkeys(k for m in metrics for k, v in m.items() if k not in CLOCK and _is_number(v)))
    charts: list[Chart] = []
    used: set[str] = set()
    for title, names, unit, factor in _KNOWN:
        lines = tuple(series(metrics, n, factor) for n in names if n in keys)
        used.update(names)
        if lines:
            charts.append(Chart(title, lines, unit))
    probes = []
    for kind in ("probe", "pretext"):
        percent = [k for k in keys if k.startswith(f"{kind}/") and (kind == "pretext" or "top" in k)]
        if percent:
            lines = tuple(series(metrics, k, name=k.removeprefix(f"{kind}/")) for k in percent)
            probes.append(Chart(_TITLES[kind], lines, " %", dots=True))
        used.update(percent)
    for title, names, unit in _HELD_OUT:
        held = tuple(series(metrics, f"probe/{n}", name=n) for n in names if f"probe/{n}" in keys)
        if held:
            probes.append(Chart(title, held, unit, dots=True))
        used.update(f"probe/{n}" for n in names)
    rest = [k for k in keys if k not in used]
    ranks = [Chart(_pretty(k), (series(metrics, k),), dots=True) for k in rest if k.startswith(("rank/", "probe/"))]
    others = [Chart(_pretty(k), (series(metrics, k),)) for k in rest if not k.startswith(("rank/", "probe/"))]
    lead = [c for c in charts if c.title == "Loss"]
    return lead + probes + ranks + [c for c in charts if c.title != "Loss"] + others


def save_curves(metrics: Metrics, folder: str | Path) -> list[Path]:
    """Write every chart as a PNG file into `folder` and return the paths."""
    used: dict[str, int] = {}
    paths = []
    for chart in curves(metrics):
        stem = "".join(c if c.isalnum() else "-" for c in chart.title.lower()).strip("-") or "curve"
        used[stem] = used.get(stem, 0) + 1
        name = stem if used[stem] == 1 else f"{stem}-{used[stem]}"
        paths.append(save_png(draw(chart), Path(folder) / f"{name}.png"))
    return paths


def _pretty(key: str) -> str:
    head, _, tail = key.partition("/")
    return f"{tail.replace('_', ' ')} ({head})" if tail else head.replace("_", " ")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
