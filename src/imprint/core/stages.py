"""Where the stages of a run lie: RUN/stages.json holds their configurations, RUN/stage-1, RUN/stage-2, ... the runs."""

from __future__ import annotations

import json
from pathlib import Path

STAGES = "stages.json"
"""In the folder of a run of several stages: a list of configurations under `stages`."""


def is_staged(folder: Path) -> bool:
    """Tell whether a run folder is one of several stages."""
    return (folder / STAGES).is_file()


def stage_folder(run: Path, number: int) -> Path:
    """Return the folder of a stage, counted from 1."""
    return run / f"stage-{number}"


def stage_count(run: Path) -> int:
    """Return how many stages a run has; 0 when `stages.json` is absent or unreadable."""
    try:
        return len(json.loads((run / STAGES).read_text(encoding="utf-8"))["stages"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def begun(run: Path) -> list[Path]:
    """Return the folders of the stages that have begun, in order."""
    folders = [stage_folder(run, number) for number in range(1, stage_count(run) + 1)]
    return [folder for folder in folders if (folder / "config.json").is_file()]


def home(folder: Path) -> Path:
    """Return the folder that `--resume` takes: a stage's parent, any other run itself."""
    return folder.parent if folder.name.startswith("stage-") and is_staged(folder.parent) else folder
