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

if TYPE_CHECKING:
    from imprint.train.config import RunConfig

SHORT = (
    "data", "val", "encoder", "image_size", "batch_size", "epochs", "steps", "budget",
    "seed", "workers", "devices", "precision", "checkpoint_every",
)  # fmt: skip
"""The short names that `with_short` understands; on the command line they wear hyphens."""


def recipe_config(name: str, *, image_size: int | None = None) -> RunConfig:
    """Return the configuration of `METHOD` (its small-scale recipe) or `METHOD/RECIPE`, fitted to an image size.

    Raises:
        ConfigError: for an unknown method or recipe, naming the nearest.
    """
    from imprint.methods import catalog

    catalog.row(name.partition("/")[0])  # an unknown method is refused before anything heavy is imported
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

    return read_config(path / "config.json" if path.is_dir() else path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration as plain data; a run folder stands for its `config.json`.

    Raises:
        ConfigError: for a missing file, text that is no JSON, or an object that names no method.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}; give the config.json of a run.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ConfigError(f"{path} is not JSON: {problem}.") from None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ConfigError(f"{path} is not the configuration of a run: it has no method under 'name'.")
    return data


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
    if (path / "config.json").exists():
        raise ConfigError(
            f"{path} already holds a run; continue it with 'imprint pretrain --resume {path}', or choose another --out."
        )
    raise ConfigError(f"{path} already exists and is not empty; choose another --out.")


def is_main() -> bool:
    """Tell whether this process speaks for the run: it was started alone, or is the first of torchrun's or Slurm's."""
    from imprint.dist.world import ranks_of

    ranks = ranks_of(os.environ)
    return ranks is None or ranks.rank == 0
