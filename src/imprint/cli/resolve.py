"""From a recipe and what a person asked for to the configuration of a run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Steps
from imprint.core.stages import STAGES, is_staged

if TYPE_CHECKING:
    from imprint.train.config import RunConfig

SHORT = (
    "data", "val", "encoder", "image_size", "batch_size", "epochs", "steps", "budget",
    "seed", "workers", "devices", "precision", "checkpoint_every",
)  # fmt: skip
"""The short names that `with_short` understands; on the command line they wear hyphens."""


def recipe_stages(name: str, *, image_size: int | None = None) -> tuple[RunConfig, ...]:
    """Return the stages of `METHOD` (its small-scale recipe) or `METHOD/RECIPE`, fitted to an image size.

    Raises:
        ConfigError: for an unknown method or recipe, naming the nearest.
    """
    from imprint.methods import catalog

    catalog.row(name.partition("/")[0])  # an unknown method is refused before anything heavy is imported
    from imprint.recipes.book import stages_of

    return stages_of(name, image_size=image_size)


def recipe_config(name: str, *, image_size: int | None = None) -> RunConfig:
    """Return the configuration of a recipe of one stage; see `recipe_stages`.

    Raises:
        ConfigError: for an unknown method or recipe, naming the nearest, or several stages.
    """
    from imprint.methods import catalog

    catalog.row(name.partition("/")[0])
    from imprint.recipes.book import recipe

    return recipe(name, image_size=image_size)


def with_short(config: RunConfig, short: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with the short options set; None means not given.

    Args:
        config: where to start from.
        short: values by name, see SHORT. `data` is a SRC or several, `budget` is in seconds.

    Raises:
        ConfigError: for more than one of epochs, steps and budget, or sizes that do not go together.
    """
    given = {name: value for name, value in short.items() if value is not None}
    lengths = [name for name in ("epochs", "steps", "budget") if name in given]
    if len(lengths) > 1:
        raise ConfigError(f"--{lengths[0]} and --{lengths[1]} both say how long to train; give one of them.")
    top: dict[str, Any] = {
        name: given[name]
        for name in ("batch_size", "budget", "seed", "workers", "devices", "precision", "checkpoint_every")
        if name in given
    }
    if "epochs" in given:
        top |= {"length": Epochs(float(given["epochs"])), "budget": None}
    if "steps" in given:
        top |= {"length": Steps(int(given["steps"])), "budget": None}
    encoder = config.encoder
    if "image_size" in given:
        encoder = dataclasses.replace(encoder, image_size=given["image_size"])
    if "encoder" in given:
        from imprint.recipes.scale import with_backbone

        encoder = with_backbone(encoder, anchored(given["encoder"]))
    data: dict[str, Any] = {}
    if "data" in given:
        specs = [given["data"]] if isinstance(given["data"], (str, Path)) else list(given["data"])
        data["train"] = tuple(anchored(str(spec)) for spec in specs)
    if "val" in given:
        data["val"] = anchored(str(given["val"]))
    if encoder != config.encoder:
        top["encoder"] = encoder
    if data:
        top["data"] = dataclasses.replace(config.data, **data)
    return dataclasses.replace(config, **top)


def anchored(spec: str) -> str:
    """Return a SRC or ENC with a local path made absolute, so that a run can be continued from any directory."""
    path = os.path.expanduser(spec)
    pattern = any(sign in path for sign in "*?[{") and "://" not in path
    return os.path.abspath(path) if os.path.exists(path) or pattern else spec


def load_config(path: Path) -> RunConfig:
    """Read the `config.json` that a run wrote; a run folder stands for its own.

    Raises:
        ConfigError: for a missing file, text that is no JSON, or fields that no run has.
    """
    read_json(path)
    from imprint.train.run import read_config

    file = path / "config.json" if path.is_dir() else path
    config = read_config(file)
    if config.start is not None:  # relative to the run that was; the new one lies elsewhere
        start = os.path.abspath(os.path.join(file.parent, os.path.expanduser(config.start)))
        config = dataclasses.replace(config, start=start)
    return config


def load_stages(path: Path) -> tuple[RunConfig, ...]:
    """Read a stored configuration as its stages: a `config.json` has one, a `stages.json` several.

    Raises:
        ConfigError: see `load_config`.
    """
    if "stages" not in read_json(path):
        return (load_config(path),)
    from imprint.train.run import read_stages

    return read_stages(path if path.is_dir() else path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration as plain data; a run folder stands for its `stages.json` or `config.json`.

    Raises:
        ConfigError: for a missing file, text that is no JSON, or an object that names no method.
    """
    if path.is_dir():
        path = path / (STAGES if is_staged(path) else "config.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}; give the config.json of a run.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ConfigError(f"{path} is not JSON: {problem}.") from None
    first = data["stages"][0] if isinstance(data, dict) and data.get("stages") and path.name == STAGES else data
    if not isinstance(first, dict) or not isinstance(first.get("name"), str):
        raise ConfigError(f"{path} is not the configuration of a run: it has no method under 'name'.")
    return dict(data)


def free_folder(path: Path) -> Path:
    """Return `path` when it is free, else the first free of `path-2`, `path-3`, and so on."""
    candidate, number = path, 1
    while not is_free(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def is_free(path: Path) -> bool:
    """Tell whether a run can be written there: nothing, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def require_free(path: Path) -> None:
    """Refuse to write a new run over anything.

    Raises:
        ConfigError: saying what is there and how to go on.
    """
    if is_free(path):
        return
    if (path / "config.json").exists() or is_staged(path):
        raise ConfigError(
            f"{path} already holds a run; continue it with 'imprint pretrain --resume {path}', or choose another --out."
        )
    raise ConfigError(f"{path} already exists and is not empty; choose another --out.")


def is_main() -> bool:
    """Tell whether this process speaks for the run: it was started alone, or is the first of torchrun's or Slurm's."""
    from imprint.dist.world import ranks_of

    ranks = ranks_of(os.environ)
    return ranks is None or ranks.rank == 0
