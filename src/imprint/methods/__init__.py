"""Floor 4: one file per method, and `catalog`, the table of them. `imprint.methods()` lists the table."""

from __future__ import annotations

import sys
from types import ModuleType

from imprint.methods.catalog import CATALOG, Row


class _Methods(ModuleType):
    """The package, callable: its name is also the public function's (see `imprint.api.methods`)."""

    def __call__(self) -> tuple[Row, ...]:
        """Return the rows of all methods."""
        return CATALOG


sys.modules[__name__].__class__ = _Methods
