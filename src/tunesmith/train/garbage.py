"""What Python's garbage collector looks at while rows are prepared and a model is trained.

Objects of the libraries are half a million, and every search of them costs a third of a second of a core; Trainer asks
for one before its first step.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_frozen = False
"""Whether objects were frozen here; the collector itself would count them one by one, for a tenth of a second."""


def freeze() -> None:
    """Collect once, and search what is left no more for the rest of the process; a second call does nothing."""
    global _frozen
    if not _frozen:
        gc.collect()
        gc.freeze()
        _frozen = True


@contextmanager
def nothing_old_collected() -> Iterator[None]:
    """Keep the collector from searching the objects that are there already; those made meanwhile are searched as ever.

    Within another such block, and where somebody froze objects before, nothing changes.
    """
    global _frozen
    if _frozen or gc.get_freeze_count() > 0:
        yield
        return
    gc.freeze()
    _frozen = True
    try:
        yield
    finally:
        gc.unfreeze()
        _frozen = False
