"""Do measures without labels order a set of runs as a probe with labels does? Three correlations, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.viz.charts import Chart, Series
from imprint.viz.evaluation_details import is_number
from imprint.viz.league import Entry, better
from imprint.viz.page import Section, table, text
from imprint.viz.sections import panel

MEASURES: tuple[tuple[str, str], ...] = (
    ("rankme", "RankMe"),
    ("lidar", "LiDAR"),
    ("alpha_req", "alpha-ReQ"),
    ("effective_rank", "effective rank"),
    ("uniformity", "uniformity"),
    ("alignment", "alignment"),
    ("std", "per-dimension std"),
    ("std_min", "std of the least dimension"),
    ("infonce_bound", "InfoNCE bound"),
)
SCORES = (("linear", "linear probe"), ("logreg", "logistic regression"), ("knn", "kNN"))
FEW = 10
COMMAND = "imprint evaluate labelfree --encoder RUN --train SRC"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """A coefficient in [-1, 1] with its 95 % interval; None for too few points or a perfect order."""

    value: float
    ends: tuple[float, float] | None


def pearson(x: Values, y: Values) -> Correlation:
    """Return Pearson's r; interval by Fisher's z, se 1 / sqrt(n - 3), from 4 points on. NaN for a constant."""
    a, b = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    r = float(a @ b) / scale if scale > 0 else math.nan
    return Correlation(r, _fisher(r, 1.0, len(x) - 3))


def spearman(x: Values, y: Values) -> Correlation:
    """Return Spearman's rho: Pearson's r of mid-ranks; interval by Fisher's z, se^2 = (1 + r^2/2) / (n - 3).

    The variance is Bonett and Wright's (2000).
    """
    r = pearson(mid_ranks(x), mid_ranks(y)).value
    return Correlation(r, _fisher(r, 1.0 + r * r / 2, len(x) - 3))


def kendall(x: Values, y: Values) -> Correlation:
    """Return Kendall's tau-b; interval by Fisher's z, se^2 = 0.437 / (n - 4) (Fieller, Hartley, Pearson, 1957)."""
    dx, dy = (np.sign(v[:, None] - v[None, :]) for v in (x, y))
    scale = math.sqrt(float((dx * dx).sum()) * float((dy * dy).sum()))
    tau = float((dx * dy).sum()) / scale if scale > 0 else math.nan
    return Correlation(tau, _fisher(tau, 0.437, len(x) - 4))


def mid_ranks(x: Values) -> Values:
    """Return ranks from 1, equal values sharing the mean of theirs."""
    return np.asarray((x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) + 1) / 2, dtype=np.float64)


@dataclass(frozen=True)
class Score:
    """The number that measures are held against: what it is, and its value by entry."""

    title: str
    values: tuple[float | None, ...]


def score_of(entries: Sequence[Entry]) -> Score | None:
    """Return the main metric of the evaluation with labels that most entries share, linear before kNN, else a probe.

    Only entries with label-free measures count; None when fewer than three share one.
    """
    measured = [any(key[0] == "labelfree" for key in entry.evaluations) for entry in entries]

    def shared(values: Sequence[float | None]) -> int:
        return sum(v is not None and own for v, own in zip(values, measured, strict=True))

    found: list[tuple[int, int, Score]] = []
    for place, (protocol, title) in enumerate(SCORES):
        for key in sorted({k for e in entries for k in e.evaluations if k[0] == protocol}):
            reports = [entry.evaluations.get(key) for entry in entries]
            values = tuple(_number(r["metrics"].get(r.get("main"))) if r else None for r in reports)
            found.append((-shared(values), place, Score(f"{title} %", values)))
    for place, (metric, title) in enumerate((("probe/linear_top1", "linear"), ("probe/knn_top1", "kNN")), len(SCORES)):
        bests = [entry.run.best(metric) if entry.run else None for entry in entries]
        values = tuple(best[1] if best else None for best in bests)
        found.append((-shared(values), place, Score(f"best online {title} %", values)))
    count, _, score = min(found, key=lambda f: f[:2])
    return score if -count >= 3 else None


def measure_of(entries: Sequence[Entry], name: str) -> tuple[float | None, ...]:
    """Return a label-free measure by entry, of the labelfree evaluation that most entries share."""
    best: tuple[float | None, ...] = (None,) * len(entries)
    for key in sorted({k for e in entries for k in e.evaluations if k[0] == "labelfree"}):
        reports = [entry.evaluations.get(key) for entry in entries]
        values = tuple(_number(r["metrics"].get(name)) if r else None for r in reports)
        if sum(v is not None for v in values) > sum(v is not None for v in best):
            best = values
    return best


def correlation_section(entries: Sequence[Entry]) -> Section:
    """Return the table of correlations and a scatter chart for each measure."""
    key, title = "labelfree", "Label-free measures"
    score = score_of(entries)
    if not any(k[0] == "labelfree" for e in entries for k in e.evaluations):
        return Section(key, title, reason=f"No run has label-free measures in its evals folder; make them: {COMMAND}")
    if score is None:
        return Section(key, title, reason="Fewer than three runs share a linear or kNN score to hold measures against.")
    rows, panels, smallest = [], [], len(entries)
    drawn: set[str] = set()
    for name, shown in MEASURES:
        values = measure_of(entries, name)
        both = [
            (e, m, s) for e, m, s in zip(entries, values, score.values, strict=True) if m is not None and s is not None
        ]
        if len(both) < 3:
            continue
        smallest = min(smallest, len(both))
        x, y = np.array([m for _, m, _ in both]), np.array([s for _, _, s in both])
        sign = {1: "higher", -1: "lower", 0: "neither, about 1"}[better(name)]
        drawn |= {e.name for e, _, _ in both}
        rows.append([shown, sign, len(both), *(_shown(fn(x, y)) for fn in (pearson, spearman, kendall))])
        lines = tuple(Series(e.name, (m,), (s,)) for e, m, s in both)
        colours = tuple(e.colour for e, _, _ in both)
        chart = Chart(shown, lines, x_label=shown, colours=colours, scatter=True, y_label=score.title)
        panels.append(panel(chart, legend=False))
    if not rows:
        return Section(key, title, reason="Fewer than three runs have both label-free measures and a score.")
    missing = [e.name for e in entries if e.run and not any(k[0] == "labelfree" for k in e.evaluations)]
    about = (
        f"Each measure, made without labels, against the {score.title.removesuffix(' %')} of {smallest} runs or more. "
    )
    about += "Intervals of 95 % by Fisher's z, which takes runs for independent draws: runs of one method are not. "
    if smallest < FEW:
        about += f"With {smallest} runs they are wide, and a sign may be chance. "
    if missing:
        about += f"Not measured: {', '.join(missing)} ({COMMAND})."
    head = ("Measure", "better is", "runs", "Pearson r", "Spearman rho", "Kendall tau")
    shown_table = table(head, rows, numeric=(2, 3, 4, 5))
    legend = "".join(
        f'<span><i style="background:{e.colour}"></i>{text(e.name)}</span>' for e in entries if e.name in drawn
    )
    body = f'<p class="about">{text(about)}</p>{shown_table}<div class="legend">{legend}</div>'
    return Section(key, title, f'{body}<div class="charts">{"".join(panels)}</div>')


def _fisher(r: float, variance: float, freedom: int) -> tuple[float, float] | None:
    if freedom < 1 or not math.isfinite(r) or abs(r) > 1 - 1e-12:  # a perfect order of a few runs proves nothing
        return None
    half = 1.959963984540054 * math.sqrt(variance / freedom)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def _shown(found: Correlation) -> str:
    if not math.isfinite(found.value):
        return "constant"
    ends = f" ({found.ends[0]:+.2f} to {found.ends[1]:+.2f})" if found.ends else " (no interval)"
    return f"{found.value:+.2f}{ends}"


def _number(metric: object) -> float | None:
    value: Any = metric.get("value") if isinstance(metric, dict) else None
    return float(value) if is_number(value) and math.isfinite(value) else None
