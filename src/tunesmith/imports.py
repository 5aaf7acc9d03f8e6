"""Importing libraries without waiting for Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector from running while modules are imported.

    torch and its relatives make half a million objects that stay for the life of the process. The collector would
    search them again and again while they come, for about a sixth of the time that the import takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
