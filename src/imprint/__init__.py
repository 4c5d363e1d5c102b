"""Imprint turns unlabeled images into a vision backbone.

The public names are imported when they are first used, so `import imprint` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imprint.api import embed as embed
    from imprint.api import methods as methods
    from imprint.api import pretrain as pretrain
    from imprint.backbones.load import load_encoder as load_encoder
    from imprint.evals.evaluate import evaluate as evaluate
    from imprint.train.run import Run as Run

__all__ = ["Run", "embed", "evaluate", "load_encoder", "methods", "pretrain"]

PLACES = {
    "Run": "imprint.train.run",
    "embed": "imprint.api",
    "evaluate": "imprint.evals.evaluate",
    "load_encoder": "imprint.backbones.load",
    "pretrain": "imprint.api",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module("imprint.methods")
    if name == "__version__":
        from importlib.metadata import version

        return version("imprint")
    if name not in PLACES:
        raise AttributeError(f"module 'imprint' has no attribute '{name}'")
    value = getattr(importlib.import_module(PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
