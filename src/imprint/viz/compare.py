"""Several runs side by side: a league table, what differs in their configurations, and their curves on one chart."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.core.errors import ConfigError
from imprint.viz import charts
from imprint.viz.colours import category
from imprint.viz.curves import series
from imprint.viz.page import Section, filter_box, page, table, write_page
from imprint.viz.run_folder import RunFolder
from imprint.viz.sections import duration, panel

CURVES: tuple[tuple[str, str, str], ...] = (
    ("Loss", "loss", ""),
    ("Online kNN", "probe/knn_top1", " %"),
    ("Online linear probe", "probe/linear_top1", " %"),
    ("RankMe", "rank/rankme", ""),
    ("Images per second", "images_per_s", " images/s"),
)
"""Title, metric and unit of the charts; one without a value in any run is left out."""


def build_compare(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write one HTML file that compares runs, and return its path.

    The league is ordered by the best online kNN, then by the online linear probe, then as given. Every evaluation
    report found in a run's `evals` folder is a column, too.

    Raises:
        ConfigError: for no runs, the same run twice, or a folder that is none.
    """
    if not runs:
        raise ConfigError("nothing to compare; give the folders of two or more runs.")
    folders = [RunFolder.open(run) for run in runs]
    twice = {str(f.path) for f in folders if sum(g.path.resolve() == f.path.resolve() for g in folders) > 1}
    if twice:
        raise ConfigError(f"{sorted(twice)[0]} is given twice; a run compares with others.")
    names = distinct_names([folder.path for folder in folders])
    ranked = sorted(zip(names, folders, strict=True), key=lambda pair: _merit(pair[1]))
    document = page(
        title=f"{len(runs)} runs",
        subtitle="compared by Imprint",
        lead="",
        sections=[league(ranked), differences(ranked), curves(ranked)],
        footer=f"Written {datetime.now().astimezone().isoformat(sep=' ', timespec='minutes')} by Imprint.",
    )
    return write_page(document, Path(out))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def league(runs: Sequence[tuple[str, RunFolder]]) -> Section:
    """Return the table: one row a run, one column a number."""
    evaluations = sorted({name for _, run in runs for name in run.evaluations})
    head = ["run", "method", "encoder", "steps", "best kNN %", "best linear %", "RankMe", "loss"]
    head += [name.removesuffix(".json") for name in evaluations] + ["time", "images/s", "memory MB"]
    rows = []
    for name, run in runs:
        metrics, times = run.metrics, run.column("time")
        row: list[str] = [name, str(run.config.get("name", "?")), str(run.part("encoder").get("name", "?"))]
        row.append(f"{int(metrics[-1]['step']):,}" if metrics else "-")
        row += [_best(run, "probe/knn_top1"), _best(run, "probe/linear_top1")]
        row += [_last(run, "rank/rankme"), _last(run, "loss")]
        row += [_main_metric(run.evaluations.get(evaluation)) for evaluation in evaluations]
        row.append(duration(times[-1]) if times else "-")
        speeds = run.column("images_per_s")
        row.append(f"{sorted(speeds)[len(speeds) // 2]:,.0f}" if speeds else "-")
        peaks = run.column("memory_mb")
        row.append(f"{max(peaks):,.0f}" if peaks else "-")
        rows.append(row)
    return Section("league", "League", table(head, rows, numeric=range(3, len(head))))


def differences(runs: Sequence[tuple[str, RunFolder]]) -> Section:
    """Return the configuration fields on which the runs differ."""
    flat = [flatten(run.config) for _, run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = []
    for key in keys:
        values = [json.dumps(one[key], ensure_ascii=False) if key in one else "" for one in flat]
        if len(set(values)) > 1 and not key.startswith("provenance"):
            rows.append([key.replace("_", "-"), *(value.strip('"') for value in values)])
    if not rows:
        return Section("differences", "Differences", reason="The runs have the same configuration.")
    body = filter_box("#differences tbody tr", "filter the fields")
    return Section("differences", "Differences", body + table(["field", *(name for name, _ in runs)], rows))


def curves(runs: Sequence[tuple[str, RunFolder]]) -> Section:
    """Return one chart a metric with one line a run; a run keeps its colour throughout."""
    colours = {name: category(i) for i, (name, _) in enumerate(runs)}
    panels = []
    for title, key, unit in CURVES:
        lines = [series(run.metrics, key, name=name) for name, run in runs]
        lines = [line for line in lines if line.x]
        if not lines:
            continue
        own = tuple(colours[line.name] for line in lines)
        chart = charts.Chart(title, tuple(lines), unit, dots=key.startswith(("probe/", "rank/")), colours=own)
        panels.append(panel(chart))
    if not panels:
        return Section("curves", "Curves", reason="None of the runs has measured anything yet.")
    return Section("curves", "Curves", f'<div class="charts">{"".join(panels)}</div>')


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested objects as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _merit(run: RunFolder) -> tuple[float, float]:
    scores = [run.best(metric) for metric in ("probe/knn_top1", "probe/linear_top1")]
    first, second = (-score[1] if score is not None else 0.0 for score in scores)
    return first, second


def _best(run: RunFolder, metric: str) -> str:
    found = run.best(metric)
    return f"{found[1]:.1f}" if found is not None else "-"


def _last(run: RunFolder, metric: str) -> str:
    values = run.column(metric)
    return charts.label(values[-1]) if values else "-"


def _main_metric(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "-"
    metric = report["metrics"].get(report.get("main"), {})
    value = metric.get("value") if isinstance(metric, Mapping) else None
    return f"{value:.2f}" if isinstance(value, (int, float)) else "-"
