"""The league table: one row a run or a public model, every known number of it, the best of each column marked."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imprint.evals.report import options, question
from imprint.viz import charts
from imprint.viz.colours import category
from imprint.viz.evaluation_details import is_number
from imprint.viz.evaluation_page import interval, number
from imprint.viz.page import Cell, Section, filter_box, table
from imprint.viz.run_folder import Json, RunFolder
from imprint.viz.sections import duration

LOWER = (
    "loss",
    "alignment",
    "uniformity",
    "error",
    "perplexity",
    "time",
    "memory",
    "median_rank",
    "decay",
    "nll",
    "ece",
)
NEITHER = ("alpha_req", "steps", "images seen", "parameters", "n")
WORTHIEST = ("linear", "knn", "logreg", "finetune")


@dataclass
class Entry:
    """What takes part in a comparison.

    Attributes:
        name: how it is called on the page.
        run: its folder; None for a model known from report files only.
        evaluations: reports by what they asked (`question`).
        colour: the same in every chart of the page.
    """

    name: str
    run: RunFolder | None = None
    evaluations: dict[tuple[str, ...], Json] = field(default_factory=dict)
    colour: str = category(0)


@dataclass(frozen=True)
class Value:
    """A number of one entry; None where it is not known."""

    number: float | None
    shown: str = "-"
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """One number of all entries.

    Attributes:
        title: heading.
        note: what tells it from columns of the same heading.
        values: one per entry.
        better: 1 higher, -1 lower, 0 neither.
        minor: shown on request only.
    """

    title: str
    note: str
    values: tuple[Value, ...]
    better: int = 0
    minor: bool = False


def entries_of(runs: Sequence[tuple[str, RunFolder]]) -> list[Entry]:
    """Return one entry a run, with its evaluations and a colour."""
    return [
        Entry(name, run, {asked(report, file): report for file, report in run.evaluations.items()}, category(i))
        for i, (name, run) in enumerate(runs)
    ]


def asked(report: Mapping[str, Any], file: str) -> tuple[str, ...]:
    """Return the question of a report; one that names no data is known by its file."""
    return question(report) if report.get("data") else (*question(report), f"file={Path(file).stem}")


def columns(entries: Sequence[Entry]) -> list[Column]:
    """Return the columns: evaluations, online probes, cost."""
    found: list[Column] = []
    labels = _labels(entries)
    for key, (title, note) in labels.items():
        reports = [entry.evaluations.get(key) for entry in entries]
        names = list(dict.fromkeys(name for r in reports if r for name in r["metrics"]))
        mains = {str(r.get("main")) for r in reports if r}
        for name in sorted(names, key=lambda n: n not in mains):
            values = tuple(_value(r["metrics"].get(name)) if r else Value(None) for r in reports)
            if any(v.number is not None for v in values):
                found.append(Column(f"{title} {name}", note, values, better(name), name not in mains))
    online = (
        ("online kNN %", "probe/knn_top1", "best", False),
        ("online linear %", "probe/linear_top1", "best", False),
        ("online RankMe", "rank/rankme", "last", True),
        ("loss", "loss", "last", True),
    )
    for title, metric, which, minor in online:
        values = tuple(_online(entry.run, metric, which) for entry in entries)
        if any(v.number is not None for v in values):
            order = 0 if title == "loss" else 1  # losses of different methods share no scale
            found.append(Column(title, f"{which} of the run", values, order, minor))
    return found + _costs(entries)


def league(entries: Sequence[Entry]) -> Section:
    """Return the table: one row an entry, one column a number, sortable, searchable, the best of each column marked."""
    found = columns(entries)
    marks = [mark(column) for column in found]
    rows = []
    for i, entry in enumerate(entries):
        config = entry.run.config if entry.run else {}
        encoder = entry.run.part("encoder").get("name", "?") if entry.run else ""
        row: list[Any] = [entry.name, str(config.get("name", "")) or "-", str(encoder) or "-"]
        for column, kinds in zip(found, marks, strict=True):
            value = column.values[i]
            kind = " ".join(filter(None, (kinds[i], "minor" if column.minor else "")))
            note = f"{number(value.ends[0])} to {number(value.ends[1])}" if value.ends else ""
            row.append(Cell(value.shown, note=note, order=value.number, kind=kind))
        rows.append(row)
    head: list[Any] = ["run", "method", "encoder"]
    head += [Cell(c.title, note=c.note, kind="minor" if c.minor else "") for c in found]
    shown = table(head, rows, numeric=range(3, len(head)), sortable=True)
    about = (
        '<p class="about">Click a heading to sort. Green is the best of a column, \u2248 marks what its 95 % interval '
        "(the small numbers) does not tell from the best: the intervals overlap. Measures of which neither more nor "
        "less is better are unmarked.</p>"
    )
    tools = filter_box("#league tbody tr", "filter the runs")
    if any(column.minor for column in found):
        button = '<button type="button" data-wide="#league-table" aria-pressed="false">all metrics</button></div>'
        tools = tools.removesuffix("</div>") + button
    return Section("league", "League", f'{about}{tools}<div id="league-table">{shown}</div>')


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries by the evaluation that most of them share (linear before kNN), then by the online probes."""
    keys = {key for entry in entries for key in entry.evaluations}

    def shared(key: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
        worth = WORTHIEST.index(key[0]) if key[0] in WORTHIEST else len(WORTHIEST)
        return (-sum(key in entry.evaluations for entry in entries), worth, key)

    candidates = sorted((key for key in keys if key[0] != "labelfree"), key=shared)
    chosen = candidates[0] if candidates and -shared(candidates[0])[0] > 1 else None

    def merit(entry: Entry) -> tuple[float, ...]:
        report = entry.evaluations.get(chosen) if chosen else None
        main = _value(report["metrics"].get(report.get("main"))).number if report else None
        probes = [_online(entry.run, name, "best").number for name in ("probe/knn_top1", "probe/linear_top1")]
        return tuple(-math.inf if value is None else value for value in (main, *probes))

    return sorted(entries, key=merit, reverse=True)


def mark(column: Column) -> list[str]:
    """Return `best` for the best values of a column, `tie` for those whose intervals overlap the best's, else ""."""
    known = [v.number for v in column.values if v.number is not None and math.isfinite(v.number)]
    if not column.better or len(known) < 2:
        return [""] * len(column.values)
    top = max(known, key=lambda v: v * column.better)
    ends = next(v.ends for v in column.values if v.number == top)
    kinds = []
    for value in column.values:
        overlap = ends and value.ends and value.ends[0] <= ends[1] and ends[0] <= value.ends[1]
        kinds.append("best" if value.number == top else ("tie" if overlap else ""))
    return kinds


def better(metric: str) -> int:
    """Return 1 when more of a metric is better, -1 when less is, 0 for neither."""
    words = metric.lower()
    if words in NEITHER:
        return 0
    return -1 if any(word in words.replace("/", "_").split("_") or words == word for word in LOWER) else 1


def parameters(run: RunFolder) -> int | None:
    """Return the number of values in the exported encoder, read off the header of its file."""
    file = run.path / "encoder.safetensors"
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length < 1 << 28 else {}
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _costs(entries: Sequence[Entry]) -> list[Column]:
    def of(fn: Any) -> tuple[Value, ...]:
        return tuple(fn(entry.run) if entry.run else Value(None) for entry in entries)

    def steps(run: RunFolder) -> Value:
        count = int(run.metrics[-1]["step"]) if run.metrics else None
        return Value(count, f"{count:,}") if count is not None else Value(None)

    def seen(run: RunFolder) -> Value:
        batch = run.config.get("batch_size")
        count = int(run.metrics[-1]["step"]) * batch if run.metrics and isinstance(batch, int) else None
        return Value(count, f"{count:,}") if count is not None else Value(None)

    def size(run: RunFolder) -> Value:
        count = parameters(run)
        return Value(count, charts.label(count)) if count is not None else Value(None)

    def time(run: RunFolder) -> Value:
        times = run.column("time")
        return Value(times[-1], duration(times[-1])) if times else Value(None)

    def speed(run: RunFolder) -> Value:
        speeds = sorted(run.column("images_per_s"))
        middle = speeds[len(speeds) // 2] if speeds else None
        return Value(middle, f"{middle:,.0f}") if middle is not None else Value(None)

    def memory(run: RunFolder) -> Value:
        peak = max(run.column("memory_mb"), default=None)
        return Value(peak, f"{peak:,.0f}") if peak is not None else Value(None)

    found = [
        Column("steps", "", of(steps)),
        Column("images seen", "", of(seen)),
        Column("parameters", "of the encoder", of(size)),
        Column("time", "of pretraining", of(time), -1),
        Column("images/s", "median", of(speed), 1, True),
        Column("memory MB", "peak", of(memory), -1),
    ]
    return [column for column in found if any(v.number is not None for v in column.values)]


def _labels(entries: Sequence[Entry]) -> dict[tuple[str, ...], tuple[str, str]]:
    """Return (title, note) of each question: the protocol, then its data and options; files without data by name."""
    asked_of: dict[tuple[str, ...], Json] = {}
    for entry in entries:
        for key, report in entry.evaluations.items():
            asked_of.setdefault(key, report)
    found = {}
    for key in sorted(asked_of, key=lambda k: (k[0] == "labelfree", *k)):
        report = asked_of[key]
        data = report.get("data") if isinstance(report.get("data"), Mapping) else {}
        last = data.get("test") or data.get("train") or {}  # type: ignore[union-attr]
        spec = str(last.get("spec", "")) if isinstance(last, Mapping) else ""
        where = "/".join(Path(spec).parts[-2:]) if spec else key[-1].removeprefix("file=")
        found[key] = (str(report.get("protocol", "?")), ", ".join(filter(None, (where, *options(report)))))
    return found


def _value(metric: Any) -> Value:
    value = metric.get("value") if isinstance(metric, Mapping) else None
    if not is_number(value):
        return Value(None)
    return Value(float(value), number(value), interval(metric))  # type: ignore[arg-type]


def _online(run: RunFolder | None, metric: str, which: str) -> Value:
    if run is None:
        return Value(None)
    if which == "best":
        found = run.best(metric)
        return Value(found[1], f"{found[1]:.1f}") if found is not None else Value(None)
    values = run.column(metric)
    return Value(values[-1], charts.label(values[-1])) if values else Value(None)
