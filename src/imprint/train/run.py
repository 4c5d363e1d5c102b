"""A run folder, opened: its configuration, metrics, checkpoints and encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.core.codec import from_json, to_json
from imprint.core.errors import CheckpointError, ConfigError
from imprint.core.stages import STAGES, begun, is_staged, stage_count, stage_folder
from imprint.methods.catalog import method_class
from imprint.train.checkpoint import Checkpoints, replace_text
from imprint.train.config import RunConfig
from imprint.train.runlog import read_lines

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder


@dataclass(frozen=True)
class Run:
    """What a training left, finished or not.

    Attributes:
        path: the run folder.
        config: the resolved configuration.
    """

    path: Path
    config: RunConfig

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder; one of several stages stands for its last stage.

        Raises:
            ConfigError: when it is none, saying what is missing.
        """
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"there is no run at '{folder}': no such folder.")
        if is_staged(folder):
            last = stage_folder(folder, stage_count(folder))
            if last not in begun(folder):
                raise ConfigError(
                    f"{folder} has come to stage {max(1, len(begun(folder)))} of {stage_count(folder)}; finish it: "
                    f"imprint pretrain --resume {folder}. Its stages are run folders of their own ({folder}/stage-1)."
                )
            folder = last
        return cls(folder, read_config(folder / "config.json"))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`, oldest first."""
        file = self.path / "metrics.jsonl"
        return [found for _, found in read_lines(file)] if file.exists() else []

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", self.config.keep)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the newest checkpoint; 0 when there is none."""
        steps = self.checkpoints.steps()
        return steps[-1] if steps else 0

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step and left its encoder."""
        lines = self.metrics()
        return self.encoder_path.exists() and any(line.get("event") == "finished" for line in lines[-3:])

    @property
    def encoder_path(self) -> Path:
        """The exported encoder, written when a run ends."""
        return self.path / "encoder.safetensors"

    @property
    def report_path(self) -> Path:
        """The report, once it was built."""
        return self.path / "report.html"

    def encoder(self) -> Encoder:
        """Load the trained encoder.

        Raises:
            CheckpointError: when the run has not left one yet.
        """
        if not self.encoder_path.exists():
            raise CheckpointError(
                f"{self.path} holds no encoder yet (it is written when a run ends). "
                f"Finish it with: imprint pretrain --resume {self.path}"
            )
        from imprint.backbones.load import load_encoder

        return load_encoder(str(self.path))


def read_config(path: Path) -> RunConfig:
    """Read a run's `config.json`.

    Raises:
        ConfigError: when it is missing or does not fit.
    """
    return _config(_read(path), str(path))


def read_stages(folder: Path) -> tuple[RunConfig, ...]:
    """Read the configurations of a run of several stages.

    Raises:
        ConfigError: when `stages.json` is missing or does not fit.
    """
    path = folder / STAGES
    data = _read(path)
    stages = data.get("stages") if isinstance(data, dict) else None
    if not isinstance(stages, list) or not stages:
        raise ConfigError(f"{path} names no stages.")
    return tuple(_config(stage, f"{path}, stage {number}") for number, stage in enumerate(stages, 1))


def write_stages(folder: Path, stages: tuple[RunConfig, ...]) -> None:
    """Write `stages.json` in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / STAGES, json.dumps({"stages": to_json(stages)}, indent=2) + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"'{path.parent}' is no run folder: it has no {path.name}.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def _config(data: Any, where: str) -> RunConfig:
    if not isinstance(data, dict) or "name" not in data:
        raise ConfigError(f"{where} is no run configuration: it names no method.")
    return from_json(RunConfig, data, where, {"method": method_class(str(data["name"])).Config})


def write_config(path: Path, config: RunConfig) -> None:
    """Write a run's `config.json` in one step."""
    replace_text(path, json.dumps(to_json(config), indent=2) + "\n")
