"""Signals that end what we started: the user learns how to go on, and the exit code says which signal it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.errors import Interrupted


@contextmanager
def interruptible(what: str, *, remedy: str) -> Iterator[None]:
    """Turns SIGINT and SIGTERM into ``Interrupted``, so that whoever waits can end what runs; in the main thread only.

    Args:
        what: the first half of the sentence, ``the sweep``.
        remedy: how to go on.
    """

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(f"{what} was interrupted", signal_number=number, remedy=remedy)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
