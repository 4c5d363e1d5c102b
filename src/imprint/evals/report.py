"""The result every evaluation protocol returns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError
from imprint.core.stages import begun
from imprint.viz.raster import read_png, save_png

HOW = frozenset({"--device", "--workers", "--batch-size", "--cache", "--no-cache", "--checkpoint-every"})
"""Options that say how something is computed, not what."""


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
class Page:
    """A page to open in a browser that belongs to a report.

    Attributes:
        name: last part of its file name: letters, digits, `-` and `_`.
        document: the whole HTML, which loads nothing else.
    """

    name: str
    document: str = field(compare=False, repr=False)


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
        pages: HTML; `save` writes each as `<stem>_<name>.html` beside the JSON.
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
    pages: tuple[Page, ...] = ()

    def to_json(self, folder: str = "") -> str:
        """Return the report as indented JSON; of figures, caption and file (in `folder`) only."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("figures", "pages")}
        plain["metrics"] = {name: dataclasses.asdict(metric) for name, metric in self.metrics.items()}
        plain["figures"] = [
            {"name": f.name, "caption": f.caption, "file": f"{folder}/{f.name}.png" if folder else f"{f.name}.png"}
            for f in self.figures
        ]
        return json.dumps(plain, indent=2)

    def save(self, path: Path) -> None:
        """Write the JSON, aside and renamed, and the figures into the folder `<path without suffix>_figures` first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():  # /dev/stdout: written to, never replaced
            path.write_text(self.to_json() + "\n", encoding="utf-8")
            return
        folder = path.with_name(f"{path.stem}_figures")
        for figure in self.figures:
            save_png(figure.picture, folder / f"{figure.name}.png")
        for page in self.pages:
            path.with_name(f"{path.stem}_{page.name}.html").write_text(page.document, encoding="utf-8")
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(self.to_json(folder.name) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Return a report that `save` wrote, with its figures; those whose files are gone or damaged are left out.

        Raises:
            DataError: for a file that is missing, no JSON, or no report.
        """
        file = Path(path)
        plain = read_json(file)
        metrics = {str(name): _metric(value) for name, value in plain["metrics"].items() if isinstance(value, Mapping)}
        figures = []
        for name, caption, picture in figure_files(plain, file.parent):
            try:
                figures.append(Figure(name=name, caption=caption, picture=read_png(picture)))
            except ValueError:  # a damaged picture must not cost the numbers
                continue
        return cls(
            protocol=str(plain.get("protocol", "")),
            encoder=str(plain.get("encoder", "")),
            data=_mapping(plain, "data"),
            metrics=metrics,
            main=str(plain.get("main", "")),
            details=_mapping(plain, "details"),
            cost=_mapping(plain, "cost"),
            command=str(plain.get("command") or ""),
            figures=tuple(figures),
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the plain data of a report file.

    Raises:
        DataError: for a file that is missing, no JSON, or no report.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataError(f"'{path}' is no JSON ({error}); a report is written by: imprint evaluate --out.") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("metrics"), dict):
        raise DataError(f"'{path}' is JSON but no report: it has no metrics. Reports come from imprint evaluate.")
    return plain


def figure_files(plain: Mapping[str, Any], folder: Path) -> list[tuple[str, str, Path]]:
    """Return (name, caption, file) of the figures of a report in `folder` whose files exist inside that folder."""
    found = []
    for entry in plain.get("figures") or ():
        if not isinstance(entry, Mapping) or not entry.get("file"):
            continue
        file = folder / str(entry["file"])
        if file.resolve().is_relative_to(folder.resolve()) and file.is_file():  # a report names no file of others
            found.append((str(entry.get("name", "")), str(entry.get("caption", "")), file))
    return found


def question(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a report asked, equal for two encoders judged alike: protocol, data by content, options.

    The options are read off the command; those that only say how it is computed (device, workers, ...) do not count.
    """
    data = _mapping(plain, "data")
    parts = [str(plain.get("protocol", ""))]
    for role in sorted(data):
        value = data[role]
        known = isinstance(value, Mapping)
        mark = value.get("fingerprint") or value.get("spec") if known else value
        labels = value.get("labels") if known else None  # the same images may be labelled in several ways
        parts.append(f"{role}={mark}{f' {labels}' if labels else ''}")
    return (*parts, *options(plain))


def options(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the protocol's own options in a report's command, sorted, each with its values."""
    try:
        words = shlex.split(str(plain.get("command") or ""))[3:]
    except ValueError:
        return ()
    found: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            found.append([word])
        elif found:
            found[-1].append(word)
    named = {"--encoder", "--train", "--test", "--out"} | HOW
    return tuple(sorted(" ".join(option) for option in found if option[0] not in named))


def run_report_path(encoder: str, report: Report) -> Path | None:
    """Return RUN/evals/<protocol>-<8 digits>.json for an encoder that is a run folder, else None.

    The digits follow from what was asked (`question`), so that asking again replaces the file and runs judged alike
    have files of the same name.
    """
    folder = Path(encoder).expanduser()
    folder = (begun(folder) or [folder])[-1]
    if not (folder / "config.json").is_file() or not (folder / "encoder.safetensors").is_file():
        return None
    asked = question({f.name: getattr(report, f.name) for f in dataclasses.fields(report)})
    digits = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    return folder / "evals" / f"{report.protocol}-{digits}.json"


def _metric(value: Mapping[str, Any]) -> Metric:
    n = value.get("n")
    ends = [value.get(end) for end in ("low", "high")]
    low, high = (float(end) if isinstance(end, (int, float)) else None for end in ends)
    main = value.get("value")
    return Metric(
        value=float(main) if isinstance(main, (int, float)) else math.nan,
        low=low,
        high=high,
        n=int(n) if isinstance(n, (int, float)) else None,
    )


def _mapping(plain: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = plain.get(key)
    return dict(value) if isinstance(value, Mapping) else {}
