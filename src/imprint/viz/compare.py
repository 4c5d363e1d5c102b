"""Several runs side by side: league, curves on one chart, the same images, label-free measures, what differs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.core.errors import ConfigError
from imprint.evals.report import read_json
from imprint.viz import charts
from imprint.viz.colours import category
from imprint.viz.compare_pictures import pictures_section
from imprint.viz.correlation import correlation_section
from imprint.viz.curves import series
from imprint.viz.league import Entry, asked, entries_of, ranked
from imprint.viz.league import league as league_table
from imprint.viz.page import Section, filter_box, page, table, write_page
from imprint.viz.run_folder import RunFolder
from imprint.viz.sections import panel

CURVES: tuple[tuple[str, str, str], ...] = (
    ("Loss", "loss", ""),
    ("Online kNN", "probe/knn_top1", " %"),
    ("Online linear probe", "probe/linear_top1", " %"),
    ("RankMe", "rank/rankme", ""),
    ("Images per second", "images_per_s", " images/s"),
)
"""Title, metric and unit of the charts; one without a value in any run is left out."""


def build_compare(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, device: str = "auto") -> Path:
    """Write one HTML file that compares runs, and return its path.

    The league is ordered by the evaluation that most runs share, then by the best online kNN and linear probe, then as
    given.

    Args:
        runs: run folders, and report files (`FILE.json` of `imprint evaluate`) of models that have none, such as public
            ones. Reports of one encoder share a row; those of a run that is given, too, join its row.
        out: the file to write.
        device: where the pictures are made: auto, cpu, cuda or mps.

    Raises:
        ConfigError: for nothing to compare, the same run twice, or a folder that is none.
        DataError: for a JSON file that is no report.
    """
    if not runs:
        raise ConfigError("nothing to compare; give the folders of two or more runs.")
    paths = [Path(run).expanduser() for run in runs]
    files = [path for path in paths if path.suffix == ".json" and not path.is_dir()]
    folders = [RunFolder.open(path) for path in paths if path not in files]
    known = [f.path.resolve() for f in folders] + [file.resolve() for file in files]
    twice = [path for path in known if known.count(path) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; a run compares with others.")
    names = distinct_names([folder.path for folder in folders]) if folders else []
    entries = entries_of(list(zip(names, folders, strict=True)))
    add_files(entries, files)
    order = ranked(entries)
    first = folders[0] if folders else None
    with_runs = [(entry.name, entry.run) for entry in order if entry.run is not None]
    document = page(
        title=f"{len(entries)} {'runs' if len(entries) == len(folders) else 'encoders'}",
        subtitle="compared by Imprint",
        lead="",
        sections=[
            league_table(order),
            curves(with_runs, {entry.name: entry.colour for entry in order}),
            safe("pictures", "The same images", lambda: pictures_section(order, first, device)),
            safe("labelfree", "Label-free measures", lambda: correlation_section(order)),
            differences(with_runs),
        ],
        footer=f"Written {datetime.now().astimezone().isoformat(sep=' ', timespec='minutes')} by Imprint.",
    )
    return write_page(document, Path(out))


def add_files(entries: list[Entry], files: Sequence[Path]) -> None:
    """Add report files: to the row of the run that they judged when it is there, else to a row of their encoder.

    Raises:
        DataError: for a file that is no report.
    """
    own = {entry.run.path.resolve(): entry for entry in entries if entry.run is not None}
    public: dict[str, Entry] = {}
    for file in files:
        report = read_json(file)
        encoder = str(report.get("encoder") or file.stem)
        entry = own.get(Path(encoder).expanduser().resolve()) or public.get(encoder)
        if entry is None:
            name = f"{encoder} ({file.stem})" if any(encoder == other.name for other in entries) else encoder
            entry = public[encoder] = Entry(name, colour=category(len(entries)))
            entries.append(entry)
        entry.evaluations[asked(report, file.name)] = report


def safe(key: str, title: str, build: Callable[[], Section]) -> Section:
    """Return the section, or the error as the reason for its absence: one bad value must not cost the page."""
    try:
        return build()
    except Exception as error:
        return Section(key, title, reason=f"This part failed: {type(error).__name__}: {error}")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def league(runs: Sequence[tuple[str, RunFolder]]) -> Section:
    """Return the table of named runs: one row a run, one column a number."""
    return league_table(entries_of(runs))


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


def curves(runs: Sequence[tuple[str, RunFolder]], colours: Mapping[str, str] | None = None) -> Section:
    """Return one chart a metric with one line a run; a run keeps its colour throughout."""
    colours = colours or {name: category(i) for i, (name, _) in enumerate(runs)}
    panels = []
    for title, key, unit in CURVES:
        lines = [series(run.metrics, key, name=name) for name, run in runs]
        lines = [line for line in lines if line.x]
        if not lines:
            continue
        own = tuple(colours[line.name] for line in lines)
        dots = key.startswith(("probe/", "rank/"))
        chart = charts.Chart(title, tuple(lines), unit, dots=dots, colours=own, log=key == "loss" and far_apart(lines))
        panels.append(panel(chart))
    if not panels:
        return Section("curves", "Curves", reason="None of the runs has measured anything yet.")
    return Section("curves", "Curves", f'<div class="charts">{"".join(panels)}</div>')


def far_apart(lines: Sequence[charts.Series]) -> bool:
    """Tell whether lines are positive and a hundred times apart, so that an ordinary axis would flatten some."""
    values = [y for line in lines for y in line.y if math.isfinite(y)]
    return bool(values) and min(values) > 0 and max(values) > 100 * min(values)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested objects as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
