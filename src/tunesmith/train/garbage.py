"""What Python's garbage collector looks at while rows are prepared and a model is trained."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_old_collected() -> Iterator[None]:
    """Keep the collector from searching the objects of the libraries, half a million of them, again and again.

    Every search costs a third of a second of a core, and Trainer asks for one before its first step. Objects that are
    made meanwhile are searched as ever. Within another such block, and where somebody froze objects before, nothing
    changes.
    """
    if gc.get_freeze_count() > 0:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
