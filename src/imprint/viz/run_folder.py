"""A run folder as the report reads it: leniently, so that an old or half-finished run still gives a page."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imprint.core.errors import ConfigError, ImprintError
from imprint.core.stages import begun
from imprint.data.batch import Normalise

if TYPE_CHECKING:
    from torch import Tensor

    from imprint.backbones.encoder import Encoder
    from imprint.data.sources import Source

Json = dict[str, Any]

STREAMED = 1000
"""Images that a report looks at when a run streamed its data."""


@dataclass(frozen=True)
class Absent:
    """Why something the report wanted is not there, in one sentence."""

    reason: str


@dataclass
class RunFolder:
    """What lies in a run folder.

    Attributes:
        path: the folder.
        config: config.json as plain data.
        metrics: measured lines of metrics.jsonl, by step.
        notes: its event and warning lines.
        quarantine: lines of quarantine.jsonl.
        evaluations: reports in evals/*.json, by file name.
    """

    path: Path
    config: Json
    metrics: list[Json] = field(default_factory=list)
    notes: list[Json] = field(default_factory=list)
    quarantine: list[Json] = field(default_factory=list)
    evaluations: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Read a run folder; one of several stages stands for the last that has begun.

        Raises:
            ConfigError: when it does not exist or has no readable config.json.
        """
        folder = Path(path).expanduser()
        folder = (begun(folder) or [folder])[-1]
        file = folder / "config.json"
        if not file.is_file():
            raise ConfigError(f"'{folder}' is no run folder: it has no config.json. Give the folder named by --out.")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ConfigError(f"'{file}' cannot be read as JSON ({error}).") from error
        if not isinstance(config, dict):
            raise ConfigError(f"'{file}' holds no configuration.")
        lines = [line for line in _lines(folder / "metrics.jsonl") if isinstance(line.get("step"), (int, float))]
        run = cls(folder, config)
        run.notes = [line for line in lines if "event" in line or "warning" in line]
        run.metrics = sorted((line for line in lines if line not in run.notes), key=lambda line: line["step"])
        run.quarantine = _lines(folder / "quarantine.jsonl")
        for found in sorted((folder / "evals").glob("*.json")):
            try:
                report = json.loads(found.read_text(encoding="utf-8"))
            except (ValueError, OSError):
                continue
            if isinstance(report, dict) and isinstance(report.get("metrics"), dict):
                run.evaluations[found.name] = report
        return run

    def part(self, name: str) -> Json:
        """Return a nested object of the configuration, {} when it is missing."""
        value = self.config.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def takes(self) -> str:
        """What the run's method learns from: `images`, `pairs` or `text`; `images` for a method nobody knows."""
        from imprint.methods.catalog import CATALOG

        if str(self.part("encoder").get("name", "")).startswith("text:"):
            return "text"
        return next((row.takes for row in CATALOG if row.name == self.config.get("name")), "images")

    @property
    def normalise(self) -> Normalise:
        """The pixel normalisation the run trained with."""
        data, default = self.part("data"), Normalise()
        return Normalise(tuple(data.get("mean") or default.mean), tuple(data.get("std") or default.std))

    @property
    def image_size(self) -> int:
        """Side of the largest training view, in pixels."""
        return int(self.part("encoder").get("image_size") or 224)

    @cached_property
    def encoder(self) -> Encoder | Absent:
        """The encoder the run left, or why there is none."""
        if not (self.path / "encoder.safetensors").is_file():
            return Absent("The run has no encoder.safetensors yet; it is written when the run ends.")
        try:
            from imprint.backbones.load import load_encoder

            return load_encoder(str(self.path))
        except (ImprintError, OSError, ValueError, RuntimeError) as error:
            return Absent(f"The run's encoder cannot be loaded: {error}")

    @cached_property
    def source(self) -> Source | Absent:
        """The validation source when there is one, else the training source, or why it does not open."""
        from imprint.data.sources import open_source

        data = self.part("data")
        train = data.get("train") or []
        wanted = [data["val"]] if data.get("val") else ([train] if isinstance(train, str) else list(train))
        if not wanted:
            return Absent("The run's configuration names no data source (it trained on data in memory).")
        if self.takes == "text":
            return Absent("The run learned from text.")
        try:
            if self.takes == "pairs":
                from imprint.data.pairs import open_pairs

                return open_pairs(wanted[0]).images
            if not data.get("val") and data.get("stream", "off") != "off":
                from imprint.data.stream import is_streamable, open_stream

                if is_streamable(wanted):  # its first images: opening all shards could take hours
                    return open_stream(wanted, seed=int(self.config.get("seed", 0))).head(STREAMED)
            return open_source(wanted[0] if len(wanted) == 1 else tuple(wanted))
        except (ImprintError, OSError, ValueError) as error:
            return Absent(f"The run's data source is gone or cannot be opened: {error}")

    def samples(self, name: str) -> dict[str, Tensor] | Absent:
        """Return the tensors of samples/<name>.safetensors, or why there are none."""
        file = self.path / "samples" / f"{name}.safetensors"
        if not file.is_file():
            return Absent(f"The run has no samples/{name}.safetensors.")
        try:
            from safetensors.torch import load_file

            return dict(load_file(file))
        except Exception as error:  # safetensors raises its own type for a damaged file
            return Absent(f"samples/{name}.safetensors cannot be read: {error}")

    @property
    def command(self) -> str:
        """The command line that repeats the run."""
        import shlex

        return shlex.join(["imprint", "pretrain", "--config", str(self.path / "config.json"), "--out", "RUN2"])

    def best(self, prefix: str) -> tuple[str, float, int] | None:
        """Return (metric, value, step) of the largest finite metric whose name starts with `prefix`."""
        found = [
            (float(value), name, int(line["step"]))
            for line in self.metrics
            for name, value in line.items()
            if name.startswith(prefix) and isinstance(value, (int, float)) and np.isfinite(value)
        ]
        if not found:
            return None
        value, name, step = max(found, key=lambda f: f[0])
        return name, value, step

    def column(self, name: str) -> list[float]:
        """Return the finite values of one metric, by step."""
        values = [line.get(name) for line in self.metrics]
        return [float(v) for v in values if isinstance(v, (int, float)) and np.isfinite(v)]


def _lines(path: Path) -> list[Json]:
    """Return the objects of a JSON-lines file; damaged lines (a killed writer) are left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
