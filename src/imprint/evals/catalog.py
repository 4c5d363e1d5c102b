"""THE table of evaluation protocols. One row is all that names a protocol anywhere."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imprint.core.errors import unknown

if TYPE_CHECKING:
    from imprint.evals.protocol import Protocol


@dataclass(frozen=True)
class Row:
    """One protocol.

    Attributes:
        name: catalogue name; the module is `imprint.evals.<name>`.
        cls: class name in that module.
        needs_labels: whether the sources must carry labels.
        needs_test: whether a test source must be given.
        description: one line for tables.
    """

    name: str
    cls: str
    needs_labels: bool
    needs_test: bool
    description: str


CATALOG: tuple[Row, ...] = (
    Row("knn", "KNN", True, True, "k nearest neighbours of frozen features, many k and temperatures in one pass"),
    Row("linear", "Linear", True, True, "linear probe on frozen features, a grid of settings trained together"),
    Row("finetune", "Finetune", True, True, "the whole encoder trained further with a linear classifier on labels"),
    Row("labelfree", "LabelFree", False, False, "RankMe, LiDAR, alpha-ReQ and other measures that need no labels"),
)


def names() -> tuple[str, ...]:
    """Return all protocol names."""
    return tuple(row.name for row in CATALOG)


def row(name: str) -> Row:
    """Return the row of a protocol.

    Raises:
        ConfigError: for an unknown name, naming the nearest known one.
    """
    for candidate in CATALOG:
        if candidate.name == name:
            return candidate
    raise unknown("protocol", name, names())


def protocol_class(name: str) -> type[Protocol]:
    """Import and return the class of a protocol."""
    entry = row(name)
    cls: type[Protocol] = getattr(importlib.import_module(f"imprint.evals.{name}"), entry.cls)
    return cls
