"""The details of an evaluation as HTML, whatever their shape: settings as a table, lists of numbers as curves.

Protocols put plain data into `Report.details`; nothing here knows a protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imprint.viz.charts import Chart, Series
from imprint.viz.page import Cell, table, text
from imprint.viz.sections import panel

OPEN_ROWS = 12
MOST_ROWS = 1000
MOST_LINES = 12
BASELINES = ("chance", "baseline")


def is_number(value: Any) -> bool:
    """Tell whether a value is a number, booleans excluded."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return a plain value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value)) or "-"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {shown(own)}" for key, own in value.items()) or "-"
    return str(value)


def baselines(details: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the numbers to beat: what lies under names with `chance` or `baseline`, up to two levels deep."""
    found: list[tuple[str, float]] = []
    for key, value in details.items():
        if not any(word in str(key).lower() for word in BASELINES):
            continue
        if is_number(value):
            found.append((_pretty(key), float(value)))
        elif isinstance(value, Mapping):
            for name, own in value.items():
                inner = own.items() if isinstance(own, Mapping) else [("", own)]
                found += [(": ".join(filter(None, (f"{name}", f"{k}"))), float(v)) for k, v in inner if is_number(v)]
    return found


def details_html(details: Mapping[str, Any]) -> str:
    """Return all details: plain values first, then one part for each list or table."""
    plain: list[tuple[str, str]] = []
    parts: list[str] = []
    for key, value in details.items():
        if any(word in str(key).lower() for word in BASELINES) and baselines({key: value}):
            continue  # shown among the metrics
        if _is_plain(value):
            if value not in ("", None) and value != [] and value != {}:
                plain.append((_pretty(key), shown(value)))
        else:
            parts.append(_part(_pretty(key), value))
    head = _folded("Settings and facts", table(("Detail", ""), plain), len(plain)) if plain else ""
    return head + "".join(parts)


def _part(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        items = list(value.items())
        if all(is_number(v) or v is None for _, v in items):
            rows = [(str(k), _cell(v)) for k, v in items]
            return _folded(name, table(("Name", name), rows[:MOST_ROWS], numeric=(1,), sortable=True), len(rows))
        if all(_is_curve(v) for _, v in items):
            return "".join(_curves(name, items[i : i + MOST_LINES]) for i in range(0, len(items), MOST_LINES))
        if all(isinstance(v, Mapping) for _, v in items):
            return _records(name, [{"": k, **v} for k, v in items])
    elif isinstance(value, (list, tuple)):
        if _is_curve(value):
            return _curves(name, [(name, value)])
        if all(isinstance(v, Mapping) for v in value):
            return _records(name, list(value))
        if all(isinstance(v, (list, tuple)) and all(map(_is_plain, v)) for v in value):
            width = max(map(len, value), default=0)
            lines = [[str(i), *map(shown, v), *[""] * (width - len(v))] for i, v in enumerate(value)]
            head = ["row", *map(str, range(width))]
            return _folded(name, table(head, lines[:MOST_ROWS], numeric=range(width + 1)), len(lines))
    dumped = json.dumps(value, indent=1, ensure_ascii=False, default=str)[:20_000]
    return _folded(name, f"<pre>{text(dumped)}</pre>", dumped.count("\n"))


def _records(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a sortable table of objects: a column a key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [i for i, key in enumerate(keys) if all(is_number(row.get(key)) or row.get(key) is None for row in rows)]
    cells = [[_cell(row.get(key)) for key in keys] for row in rows[:MOST_ROWS]]
    head = [_pretty(key) or "name" for key in keys]
    return _folded(name, table(head, cells, numeric=numeric, sortable=True), len(rows))


def _curves(name: str, lines: Sequence[tuple[str, Sequence[Any]]]) -> str:
    series = tuple(
        Series(str(key), tuple(map(float, range(len(line)))), tuple(math.nan if v is None else float(v) for v in line))
        for key, line in lines
    )
    longest = max(len(line) for _, line in lines)
    return f'<div class="charts">{panel(Chart(name, series, x_label="place", dots=longest <= 30))}</div>'


def _folded(name: str, inside: str, rows: int) -> str:
    """Return a part under its name, folded where it is long."""
    more = f" (the first {MOST_ROWS:,} of {rows:,} rows)" if MOST_ROWS < rows else ""
    opened = " open" if rows <= OPEN_ROWS else ""
    return f"<details{opened}><summary>{text(name + more)}</summary>{inside}</details>"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(v is None or isinstance(v, (str, int, float)) for v in value)
    if isinstance(value, Mapping):
        return len(value) <= 4 and all(v is None or isinstance(v, (str, int, float)) for v in value.values())
    return True


def _is_curve(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) >= 2
        and all(is_number(v) or v is None for v in value)
        and any(is_number(v) for v in value)
    )


def _cell(value: Any) -> Cell:
    order = float(value) if is_number(value) and math.isfinite(value) else None
    return Cell(shown(value), order=order)


def _pretty(key: Any) -> str:
    return str(key).replace("_", " ")
