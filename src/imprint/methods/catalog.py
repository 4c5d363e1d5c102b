"""THE table of methods. One row is all that names a method anywhere; nothing is registered by import side effects."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imprint.core.errors import unknown

if TYPE_CHECKING:
    from imprint.methods.base import Method


@dataclass(frozen=True)
class Row:
    """One method: its name, class, family, paper and figure.

    Attributes:
        name: catalogue name; the module is `imprint.methods.<name>`, the recipes `imprint.recipes.<name>`.
        cls: class name in that module.
        family: group in tables.
        title: the paper's name for it.
        arxiv: arXiv number.
        year: of first publication.
        parity: numeric cases in tests/parity that it must reproduce.
        figure: the paper's figure that a paper recipe aims at.
    """

    name: str
    cls: str
    family: str
    title: str
    arxiv: str
    year: int
    parity: tuple[str, ...]
    figure: str


CATALOG: tuple[Row, ...] = (
    Row(
        "simclr", "SimCLR", "contrastive", "SimCLR", "2002.05709", 2020, ("nt_xent", "lars"),
        "ImageNet-1k linear, R50 1000 ep: 69.3",
    ),
    Row(
        "dino", "DINO", "self-distillation", "DINO", "2104.14294", 2021, ("dino", "schedules"),
        "ImageNet-1k ViT-S/16: kNN 74.5, linear 77.0",
    ),
    Row(
        "mae", "MAE", "masked image modelling", "MAE", "2111.06377", 2021, ("mae", "sincos_2d"),
        "ImageNet-1k ViT-B: fine-tuned 83.6, linear 68.0",
    ),
)  # fmt: skip


def names() -> tuple[str, ...]:
    """Return all catalogue names."""
    return tuple(row.name for row in CATALOG)


def row(name: str) -> Row:
    """Return the row of a method.

    Raises:
        ConfigError: for an unknown name, naming the nearest known one.
    """
    for candidate in CATALOG:
        if candidate.name == name:
            return candidate
    raise unknown("method", name, names())


def method_class(name: str) -> type[Method]:
    """Import and return the class of a method."""
    entry = row(name)
    cls: type[Method] = getattr(importlib.import_module(f"imprint.methods.{name}"), entry.cls)
    return cls
