"""Keep freed memory: on Linux glibc hands large blocks back to the kernel at every free and faults them in again."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024  # half of glibc's HEAP_MAX_SIZE; more is refused


def keep_freed_memory() -> bool:
    """Tell glibc to keep what it frees; True when it agreed, False where there is no glibc or the user has set it.

    Activations are allocated and freed in the same sizes at every step. By default blocks above 128 kB (growing to
    32 MB) are mapped afresh, and every page is then zeroed by the kernel on first touch, step after step.
    MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ or a preloaded allocator win over this.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    trimmed = mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(mapped and trimmed)
