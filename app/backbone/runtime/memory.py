"""Keeps memory that a forward pass frees in the process, for the next forward pass.

By default, glibc returns free memory at the end of its heap to the operating system, and the next forward
pass pays for a page fault on every page. Whether that happens depends on what lies at the end of the heap:
some processes lost a twelfth of their time, others nothing (benchmarks/LOG.md). Also by default, every thread
gets a heap of its own and keeps what it freed.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt, from glibc's malloc.h."""
KEPT_BYTES = 2**30
MAX_HEAPS = 2


def keep_freed_memory() -> None:
    """Configure malloc; call it before any thread is started. Without glibc it does nothing."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        limits = ((M_TRIM_THRESHOLD, KEPT_BYTES), (M_MMAP_THRESHOLD, KEPT_BYTES), (M_ARENA_MAX, MAX_HEAPS))
        for parameter, value in limits:
            libc.mallopt(parameter, value)
