"""Runs of several stages: what one stage hands to the next, and what the run as a whole leaves.

Each stage is an ordinary run under RUN/stage-N. It names the run it starts from (`RunConfig.start`, relative to its own
folder, so that RUN can be moved), and its method says in `Method.inherit` what it takes over.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from imprint.backbones.stored import description_of
from imprint.core.errors import CheckpointError, ConfigError, DataError
from imprint.core.stages import is_staged, stage_folder
from imprint.data.labelled import labelled_part
from imprint.data.sources import Source
from imprint.methods.base import Method
from imprint.methods.catalog import method_class
from imprint.train.build import build_method
from imprint.train.config import RunConfig
from imprint.train.images import opened
from imprint.train.run import Run
from imprint.train.texts import stored_tokenizer

Stages = tuple[RunConfig, ...]


def split_budget(stages: Stages, budget: float) -> Stages:
    """Return the stages with their parts of a budget in seconds, in proportion to `RunConfig.share`.

    Raises:
        ConfigError: for shares that are not positive.
    """
    if any(stage.share <= 0 for stage in stages):
        raise ConfigError("every stage needs a positive share of the budget (--stage-N.share).")
    total = sum(stage.share for stage in stages)
    return tuple(dataclasses.replace(stage, budget=budget * stage.share / total) for stage in stages)


def check_stages(stages: Stages, folder: Path, source: Source | None) -> None:
    """Refuse a run whose later stages could not begin, before the first one takes its time.

    Raises:
        ConfigError: for no stages, or a labelled part smaller than a batch.
        DataError: for labels that are missing, or images that cannot be opened.
    """
    from imprint.train.pseudo_labels import check_unlabelled

    if not stages:
        raise ConfigError("a run of several stages needs at least one.")
    for number, stage in enumerate(stages, 1):
        named = f"stage {number} ({stage.stage or stage.name})"
        images = source if source is not None else opened(stage)
        if method_class(stage.name).needs_labels and images.labels is None:
            raise DataError(f"{named} learns from labels, and '{images.spec}' has none: use one folder per class.")
        check_unlabelled(stage, images, stage_folder(folder, number), named)
        wanted = stage.data.labelled
        if wanted is None or wanted.names is not None:  # names may be those of an earlier stage, not drawn yet
            continue
        try:
            part, _ = labelled_part(images, wanted, stage_folder(folder, number))
        except DataError as error:
            raise DataError(f"{named}: {error}") from error
        if len(part) < stage.batch_size:
            raise ConfigError(
                f"{named} has {len(part)} images, fewer than one batch of {stage.batch_size}. Use --stage-{number}."
                f"batch-size {len(part)} or less, or more labels (--data.labelled.share, --data.labelled.per-class)."
            )


def started_from(config: RunConfig, folder: Path) -> Run | None:
    """Return the finished run that a run in `folder` starts from, or None.

    Raises:
        ConfigError: when there is no run.
        CheckpointError: when it is not finished.
    """
    if config.start is None:
        return None
    path = folder / Path(config.start).expanduser()
    run = Run.open(path if is_staged(path) else path.resolve())
    if not run.finished:
        raise CheckpointError(f"{folder} starts from {run.path}, which is not finished.")
    return run


def rebuilt(run: Run) -> Method:
    """Return the method of a finished run with its final weights, on the CPU.

    Raises:
        CheckpointError: when its checkpoints are gone or do not fit.
    """
    checkpoint = run.checkpoints.latest()
    described = description_of(run.path)
    if checkpoint is None or described is None:
        raise CheckpointError(f"{run.path} has no checkpoint or no encoder to start from.")
    channels = int(described[1]["encoder"].get("channels", 3))  # networks for text have none
    method = build_method(run.config, channels, stored_tokenizer(run.path))
    inherit(method, run.config, run.path)
    try:
        method.load_state_dict(checkpoint.tensors("model"))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit this version's {run.config.name}: {error}") from error
    return method


def inherit(method: Method, config: RunConfig, folder: Path) -> None:
    """Let a method take over from the run that its own run starts from, where there is one.

    Raises:
        ConfigError: when the method then still lacks what only an earlier run can give.
    """
    run = started_from(config, folder)
    if run is not None:
        method.inherit(rebuilt(run))
    if (missing := method.lacks()) is not None:
        raise ConfigError(missing)


def with_classes(config: RunConfig, images: Source, folder: Path) -> RunConfig:
    """Return the configuration with `method.classes` filled in where the method wants it (`Method.wants_classes`).

    The run that it starts from knows the number, or else the labels do; without either it stays 0.
    """
    if not method_class(config.name).wants_classes(config.method):
        return config
    run = started_from(config, folder)
    count = int(getattr(run.config.method, "classes", 0)) if run is not None else 0
    if not count and images.labels is not None:
        count = len(images.classes) or int(images.labels.max()) + 1
    changes: dict[str, int] = {"classes": count}
    return dataclasses.replace(config, method=dataclasses.replace(config.method, **changes))


def state_of(folder: Path) -> str:
    """Return how far a stage is: `new`, `begun` or `finished`."""
    if not (folder / "config.json").is_file():
        return "new"
    return "finished" if Run.open(folder).finished else "begun"


def leave_encoder(folder: Path, last: Path) -> None:
    """Copy the last stage's encoder beside `stages.json`: the run is then an encoder like any other."""
    for name in ("encoder.tokenizer.json", "encoder.safetensors", "encoder.json"):  # the description makes it count
        if not (last / name).is_file():
            continue
        aside = folder / f".{name}.tmp"
        shutil.copyfile(last / name, aside)
        aside.replace(folder / name)
