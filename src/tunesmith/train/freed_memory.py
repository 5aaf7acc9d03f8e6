"""Memory that a step frees stays with the process for the next one, where the run computes on a CPU with glibc.

glibc gives large blocks back to the system at once, and the end of its heap soon after; the next step then meets the
same memory page by page, each an interruption and to be filled with zeros.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables by which somebody decides this himself; GLIBC_TUNABLES can as well."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of ``mallopt``, from malloc.h."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, nothing that is freed goes back to the system; afterwards all of it does, and glibc decides as ever."""
    decided = any(name in os.environ for name in SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if decided or platform.libc_ver()[0] != "glibc":
        yield
        return
    glibc = ctypes.CDLL(None)
    glibc.mallopt(M_MMAP_MAX, 0)
    glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # what glibc's own thresholds come to in a process with large blocks; one that is set does not move any more
        glibc.mallopt(M_MMAP_MAX, 2**16)
        glibc.mallopt(M_MMAP_THRESHOLD, 2**25)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**26)
        glibc.malloc_trim(0)
