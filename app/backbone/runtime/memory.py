"""What a pass gives back stays with the process, for the next pass.

glibc hands free memory at the end of its heap to the system, and who takes it again pays for every page.
Whether passes do so depends on what happens to lie at that end: some processes lost a twelfth of their time,
others nothing (benchmarks/LOG.md). And every thread would get a heap of its own, and keep what it freed.
"""

import ctypes
import sys

TRIM, APART, ARENAS = -1, -3, -8
"""What glibc calls them in malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX."""
KEPT, HEAPS = 2**30, 2


def keep() -> None:
    """Before there are threads; where there is no glibc, nothing changes."""
    if sys.platform == "linux" and hasattr(here := ctypes.CDLL(None), "mallopt"):
        for what, much in ((TRIM, KEPT), (APART, KEPT), (ARENAS, HEAPS)):
            here.mallopt(what, much)
