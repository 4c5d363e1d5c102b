"""Find a recipe by name: `dino`, `dino/small`, `dino/paper`."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

from imprint.core.errors import ConfigError, unknown
from imprint.methods.catalog import row
from imprint.train.config import RunConfig

DEFAULT = "small"


def recipe(spec: str, *, image_size: int | None = None) -> RunConfig:
    """Return the configuration a recipe of one stage stands for.

    Args:
        spec: `METHOD` (its small-scale recipe) or `METHOD/RECIPE`.
        image_size: side of the largest view in pixels; the recipe fits patch size, stem, crops and blur to it.
            None takes the recipe's own.

    Raises:
        ConfigError: for an unknown method or recipe, naming the nearest, or a recipe of several stages.
    """
    stages = stages_of(spec, image_size=image_size)
    if len(stages) > 1:
        raise ConfigError(f"'{spec}' is a recipe of {len(stages)} stages, not one configuration; see book.stages_of.")
    return stages[0]


def stages_of(spec: str, *, image_size: int | None = None) -> tuple[RunConfig, ...]:
    """Return the configurations of a recipe's stages in order; most recipes have one. See `recipe`."""
    method, _, name = spec.partition("/")
    name = name or DEFAULT
    module = _module(method)
    if name not in module.__all__:
        raise unknown(f"recipe of {method}", name, module.__all__)
    make = getattr(module, name)
    made: RunConfig | tuple[RunConfig, ...] = make() if image_size is None else make(image_size)
    if isinstance(made, tuple):  # a stage may be of another method of the catalogue (a tokenizer, then its user)
        return tuple(dataclasses.replace(stage, recipe=name) for stage in made)
    return (dataclasses.replace(made, name=method, recipe=name),)


def recipes_of(method: str) -> dict[str, str]:
    """Return the recipes of a method: name -> first line of its docstring."""
    module = _module(method)
    return {name: (getattr(module, name).__doc__ or "").strip().splitlines()[0] for name in module.__all__}


def _module(method: str) -> ModuleType:
    return importlib.import_module(f"imprint.recipes.{row(method).name}")
