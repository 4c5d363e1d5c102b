"""An evaluation as a page of its own, and as a part of its run's: numbers, details, pictures, cost, command."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.evals.report import figure_files, options, read_json
from imprint.viz.evaluation_details import baselines, details_html, is_number, shown
from imprint.viz.page import Cell, Section, cards, page, png_figure, table, text, write_page
from imprint.viz.run_folder import RunFolder
from imprint.viz.sections import duration

FOREST = 24
WIDTH, ROW, LEFT, RIGHT = 560, 22, 190, 54


def build_evaluation_page(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write a report file of `imprint evaluate` as one self-contained page, and return its path.

    Args:
        path: the JSON file; its figures lie beside it.
        out: the file to write; None is the JSON's name with `.html`.

    Raises:
        DataError: for a file that is no report.
    """
    file = Path(path).expanduser()
    report = read_json(file)
    target = file.with_suffix(".html") if out is None else Path(out)
    protocol, encoder = str(report.get("protocol", "?")), str(report.get("encoder", "?"))
    sections = [
        Section("metrics", "Metrics", _metrics(report) if report["metrics"] else "", "The report holds no metrics."),
        Section("figures", "Figures", _figures(report, file.parent), "The report has no pictures."),
        Section("details", "Details", details_html(_object(report, "details")), "The report has no details."),
        Section("data", "Data", _data(report), "The report does not say on what it was measured."),
        Section("cost", "Cost", _cost(report), "The report does not say what it cost."),
        Section("command", "Command", _command(report), "It was made in memory; no command line repeats it."),
    ]
    document = page(
        title=f"{protocol} · {encoder}",
        subtitle=f"{encoder} judged by {protocol} with Imprint",
        lead=_summary(report),
        sections=sections,
        footer=f"Written {datetime.now().astimezone().isoformat(sep=' ', timespec='minutes')} by Imprint.",
    )
    return write_page(document, target)


def evaluation_section(run: RunFolder) -> Section:
    """Return the evaluations in the run folder, each with its numbers, pictures and details."""
    if not run.evaluations:
        reason = "No evals/*.json in the run folder; imprint evaluate PROTOCOL --encoder RUN writes them."
        return Section("evaluations", "Evaluations", reason=reason)
    parts = []
    for name, report in run.evaluations.items():
        about = "; ".join(_sources(report))
        own = ", ".join(options(report))
        details = details_html(_object(report, "details"))
        more = [f"<details><summary>Details</summary>{details}</details>" if details else ""]
        more.append(f"<details><summary>Cost and command</summary>{_cost(report)}{_command(report)}</details>")
        parts.append(
            f'<div class="evaluation"><h3>{text(report.get("protocol", name))}</h3>'
            f'<p class="about">{text(". ".join(filter(None, (about, own, name))))}</p>{_metrics(report)}'
            f"{_figures(report, run.path / 'evals')}{''.join(more)}</div>"
        )
    return Section("evaluations", "Evaluations", "".join(parts))


def interval(metric: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the ends of a metric's interval when it has one."""
    low, high = metric.get("low"), metric.get("high")
    return (float(low), float(high)) if is_number(low) and is_number(high) else None  # type: ignore[arg-type]


def number(value: Any) -> str:
    """Return a metric's value: two decimals, more for small ones."""
    if not is_number(value):
        return shown(value)
    size = abs(value)
    if isinstance(value, int) or not math.isfinite(size):
        return f"{value:,}"
    return f"{value:,.2f}" if size >= 10 or size == 0 else (f"{value:.3f}" if size >= 0.1 else f"{value:.3g}")


def _summary(report: Mapping[str, Any]) -> str:
    metrics, main = report["metrics"], str(report.get("main", ""))
    values = []
    best = metrics.get(main)
    if isinstance(best, Mapping):
        ends = interval(best)
        note = f"{_two(ends[0])} to {_two(ends[1])}, 95 % interval" if ends else "no interval"
        values.append((main, number(best.get("value")), note))
        if is_number(best.get("n")):
            values.append(("Behind it", f"{int(best['n']):,}", "samples"))
    for name, value in baselines(_object(report, "details"))[:2]:
        values.append((name, number(value), "to beat"))
    cost = _object(report, "cost")
    seconds = [float(v) for k, v in cost.items() if str(k).endswith("_s") and is_number(v)]
    if seconds:
        seen = f"{int(cost['images']):,} images" if is_number(cost.get("images")) else ""
        values.append(("Time", duration(sum(seconds)), seen))
    return cards(values)


def _metrics(report: Mapping[str, Any]) -> str:
    """Return the table of metrics, and a picture of their intervals where they share a scale."""
    rows: list[Sequence[Any]] = []
    for key, metric in report["metrics"].items():
        if not isinstance(metric, Mapping):
            continue
        value, ends = metric.get("value"), interval(metric)
        main = key == report.get("main")
        n = metric.get("n")
        rows.append(
            (
                f"{key} (main)" if main else key,
                Cell(_two(value), order=float(value) if is_number(value) else None, kind="best" if main else ""),  # type: ignore[arg-type]
                f"{_two(ends[0])} to {_two(ends[1])}" if ends else "",
                Cell(f"{n:,}", order=float(n)) if is_number(n) else "",  # type: ignore[arg-type]
            )
        )
    extra = baselines(_object(report, "details"))
    rows += [(f"{name} (to beat)", Cell(number(value), order=value), "", "") for name, value in extra]
    head = ("Metric", "Value", "95 % interval", "n")
    listed = table(head, rows, numeric=(1, 2, 3), sortable=len(rows) > 4)
    drawn = forest(report)
    return f'<div class="pair"><div>{listed}</div><div class="panel">{drawn}</div></div>' if drawn else listed


def forest(report: Mapping[str, Any]) -> str:
    """Return the intervals of metrics that are percentages, one row each, as inline SVG; "" for fewer than two."""
    found = []
    for key, metric in report["metrics"].items():
        ends = interval(metric) if isinstance(metric, Mapping) else None
        if ends and is_number(metric.get("value")) and 0 <= ends[0] <= ends[1] <= 100:
            found.append((str(key), float(metric["value"]), *ends))
    if len(found) < 2 or report.get("protocol") == "labelfree":  # whose measures share no scale
        return ""
    found = found[:FOREST]
    low, high = min(f[2] for f in found), max(f[3] for f in found)
    span = max(high - low, 1e-9)

    def px(value: float) -> float:
        return LEFT + 8 + (value - low) / span * (WIDTH - LEFT - RIGHT - 16)

    parts = []
    for i, (key, value, start, end) in enumerate(found):
        y = ROW * i + ROW / 2 + 2
        name = key if len(key) <= 26 else f"{key[:25]}…"
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text(name)}</text>')
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<line class="span" x1="{px(start):.1f}" x2="{px(end):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="point" cx="{px(value):.1f}" cy="{y}" r="3.5"/>')
        parts.append(f'<text class="tick" x="{WIDTH}" y="{y + 4}" text-anchor="end">{number(value)}</text>')
    height = ROW * len(found) + 4
    head = f'<svg class="chart-forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="intervals">'
    return f"{head}{''.join(parts)}</svg>"


def _figures(report: Mapping[str, Any], folder: Path) -> str:
    found = [png_figure(file, name, caption or name) for name, caption, file in figure_files(report, folder)]
    listed = report.get("figures")
    gone = (len(listed) if isinstance(listed, list) else 0) - len([f for f in found if f])
    missing = f'<p class="reason">{gone} of the figures are missing beside the JSON file.</p>' if gone > 0 else ""
    return "".join(found) + missing


def _data(report: Mapping[str, Any]) -> str:
    rows = [(role, shown(value)) for role, value in _object(report, "data").items()]
    return table(("Role", "What"), rows) if rows else ""


def _cost(report: Mapping[str, Any]) -> str:
    rows = []
    for key, value in _object(report, "cost").items():
        timed = str(key).endswith("_s") and is_number(value)
        name = str(key).removesuffix("_s") if timed else str(key)
        whole = is_number(value) and float(value) == int(value)
        rows.append((name.replace("_", " "), duration(value) if timed else shown(int(value) if whole else value)))
    return table(("Phase", "Cost"), rows, numeric=(1,)) if rows else ""


def _command(report: Mapping[str, Any]) -> str:
    return f"<pre>{text(report['command'])}</pre>" if report.get("command") else ""


def _sources(report: Mapping[str, Any]) -> list[str]:
    out = []
    for role, data in _object(report, "data").items():
        if isinstance(data, Mapping):
            count = data.get("count")
            many = f" ({count:,} {data.get('unit', 'images')})" if isinstance(count, int) else ""
            out.append(f"{role}: {data.get('spec', '?')}{many}")
    return out


def _two(value: Any) -> str:
    return f"{value:.2f}" if is_number(value) and (abs(value) >= 1 or value == 0) else number(value)


def _object(report: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = report.get(key)
    return dict(value) if isinstance(value, Mapping) else {}
