"""Memory of a training on a CPU."""

from __future__ import annotations

import ctypes
import sys

# numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next allocation, where the C library is glibc.

    By itself glibc takes a block of more than 32 MiB from the operating system and gives it back when it is freed. In
    large plans every feature map is such a block, and a step would spend its time on pages that the system clears again
    and again (`benchmarks/step.py`). The process then holds as much as it ever needed, until it ends.

    Returns:
        Whether it does; no on another C library or system, where nothing is changed.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
