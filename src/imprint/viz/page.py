"""The HTML of a report: one file, no network, nothing but our own script may run.

Every string that comes from a user (file names, class names, options, errors) passes through `text`; the script is
named by its hash in the page's content security policy, so markup that slipped through still could not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from imprint.viz.raster import Picture, data_uri


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: anchor.
        title: heading.
        body: HTML, "" when there is nothing to show.
        reason: why there is nothing, plain text.
    """

    id: str
    title: str
    body: str = ""
    reason: str = ""


def text(value: Any) -> str:
    """Return a value as HTML text, safe in content and in quoted attributes."""
    raw = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return html.escape(raw, quote=True)


def payload(value: Any) -> str:
    """Return data as JSON that may stand inside a script element of type application/json."""
    raw = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


SHRINKS = 1200
"""Pixels of width up to which a picture shrinks with the page: a chart; sheets of many images are scrolled."""


def figure(image: Picture, alt: str, caption: str = "", kind: str = "jpeg") -> str:
    """Return a picture with a caption; where the page is narrower it shrinks, or scrolls sideways if it is wide."""
    under = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
    fit = ' style="max-width:100%;height:auto"' if image.shape[1] <= SHRINKS else ""
    shown = f'<img {size}{fit} src="{data_uri(image, kind, 88)}" alt="{text(alt)}">'
    return f'<figure><div class="scroll">{shown}</div>{under}</figure>'


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        shown: its text.
        note: a second, smaller line.
        order: what a sorted column goes by; None sorts last.
        kind: CSS classes of our own, never a user's words.
        title: shown on hover.
    """

    shown: str
    note: str = ""
    order: float | None = None
    kind: str = ""
    title: str = ""


def table(
    head: Sequence[Any], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = (), *, sortable: bool = False
) -> str:
    """Return a table; cells are escaped, columns in `numeric` are aligned right.

    Args:
        head: names of the columns.
        rows: values or `Cell`s.
        numeric: columns of numbers.
        sortable: a click on a name of a column sorts by it, a second one the other way round.
    """

    def cell(tag: str, column: int, value: Any) -> str:
        own = value if isinstance(value, Cell) else Cell(str(value))
        kinds = " ".join(filter(None, ("number" if column in numeric else "", own.kind)))
        attributes = f' class="{kinds}"' if kinds else ""
        attributes += f' title="{text(own.title)}"' if own.title else ""
        attributes += f' data-order="{own.order!r}"' if own.order is not None else ""
        inside = text(own.shown)
        if tag == "th" and sortable:
            attributes += ' aria-sort="none"'
            inside = f'<button type="button">{inside}</button>'
        return f"<{tag}{attributes}>{inside}{f'<small>{text(own.note)}</small>' if own.note else ''}</{tag}>"

    top = "".join(cell("th", i, h) for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def png_figure(path: Path, alt: str, caption: str = "") -> str:
    """Return a PNG file as it lies, with a caption, or nothing ("") when it is no PNG file.

    Only the bytes of an image reach the page, as a data URI.
    """
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return ""
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    under = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    shown = f'<img width="{width}" height="{height}" src="{source}" alt="{text(alt)}">'
    return f'<figure><div class="scroll">{shown}</div>{under}</figure>'


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Return summary cards from (label, value, note)."""
    parts = []
    for name, value, note in values:
        under = f'<div class="note">{text(note)}</div>' if note else ""
        kind = "value long" if len(value) > 13 else "value"
        inside = f'<div class="label">{text(name)}</div><div class="{kind}">{text(value)}</div>{under}'
        parts.append(f'<div class="card">{inside}</div>')
    return f'<div class="cards">{"".join(parts)}</div>'


def filter_box(selector: str, hint: str) -> str:
    """Return a search field that shows only the elements of `selector` whose words it finds."""
    return (
        f'<div class="tools"><input type="search" data-filter="{selector}" placeholder="{text(hint)}" '
        f'aria-label="{text(hint)}"><span class="count"></span></div>'
    )


def page(title: str, subtitle: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """Return the document: header, cards (`lead`), the sections that have content, then why others are missing."""
    style, script = _asset("report.css"), _asset("report.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = [s for s in sections if s.body]
    missing = [s for s in sections if not s.body]
    menu = "".join(f'<a href="#{text(s.id)}">{text(s.title)}</a>' for s in shown)
    body = "".join(f'<section id="{text(s.id)}"><h2>{text(s.title)}</h2>{s.body}</section>' for s in shown)
    if missing:
        items = "".join(f"<li><b>{text(s.title)}.</b> {text(s.reason)}</li>" for s in missing)
        body += f'<section id="left-out"><h2>Left out</h2><ul class="reasons">{items}</ul></section>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{style}</style></head><body>'
        f'<header><div class="inner"><h1>{text(title)}</h1><p>{text(subtitle)}</p></div></header>'
        f'<nav><div class="inner">{menu}</div></nav><main>{lead}{body}</main>'
        f'<footer>{text(footer)}</footer><div id="tip" role="status" hidden></div>'
        f"<script>{script}</script></body></html>\n"
    )


def write_page(document: str, path: Path) -> Path:
    """Write a page aside and rename it, so that a killed writer leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".page-", suffix=".html", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(document)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


def _asset(name: str) -> str:
    return (resources.files("imprint.viz") / "assets" / name).read_text(encoding="utf-8")
