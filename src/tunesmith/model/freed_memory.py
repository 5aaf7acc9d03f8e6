"""Memory that a pass frees stays with the process for the next one, where a model computes on a CPU with glibc.

glibc gives large blocks back to the system at once, and the end of its heap soon after; the next pass then meets the
same memory page by page, each an interruption and to be filled with zeros.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables by which somebody decides this himself; GLIBC_TUNABLES can as well."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of ``mallopt``, from malloc.h."""

_kept = False
"""Whether somebody keeps it already, whose end is the end for those within."""


@contextmanager
def freed_memory_kept(device: torch.device | str) -> Iterator[None]:
    """Inside, nothing that is freed goes back to the system; afterwards all of it does, and glibc decides as ever.

    Args:
        device: where the model computes; elsewhere than on a CPU nothing changes.
    """
    global _kept
    decided = any(name in os.environ for name in SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if _kept or decided or torch.device(device).type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    glibc = ctypes.CDLL(None)
    _kept = True
    glibc.mallopt(M_MMAP_MAX, 0)
    glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _kept = False
        # what glibc's own thresholds come to in a process with large blocks; one that is set does not move any more
        glibc.mallopt(M_MMAP_MAX, 2**16)
        glibc.mallopt(M_MMAP_THRESHOLD, 2**25)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**26)
        glibc.malloc_trim(0)
