"""Keep freed memory: on Linux glibc hands large blocks back to the kernel at every free and faults them in again."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Tell glibc to keep what it frees; True when it agreed, False where there is no glibc or the user has set it.

    Activations are allocated and freed in the same sizes at every step. By default large blocks are mapped afresh, and
    the kernel zeroes every page on first touch, step after step. So nothing is mapped block by block, and the heap's
    top is never given back. Measured as CPU time of forward and backward on one core: a ResNet-18 on 128 images of 32
    pixels takes 15 to 20 % less (and 12 to 25 % more memory at its peak), a ViT-tiny on 32 images of 96 pixels 3 to 5 %
    less. The user's own settings of the allocator, or another allocator, win over this.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    unmapped, untrimmed = mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)
    return bool(unmapped and untrimmed)
