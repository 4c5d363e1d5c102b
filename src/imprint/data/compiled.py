"""How kernels are compiled: once per machine, without the GIL, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile `function` at its first call; later processes read the machine code from disk.

    The code is kept beside the module or, where that is read-only, in numba's folder of the user's cache
    (`NUMBA_CACHE_DIR` moves it). Where neither can be written it is compiled anew by every process, once.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no place for its cache
        return numba.njit(**options)(function)
