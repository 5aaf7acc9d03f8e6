"""Signals that ask a run to stop, and what the run makes of them.

Between two optimizer steps there is something to save, so a signal during the steps waits for the end of the one it
falls into (``stopping.py`` looks then). Before the first step there is nothing to save, and the signal ends the run
where it is. A second signal never waits. No library of training is imported here.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tunesmith.errors import Interrupted
from tunesmith.program import command as typed

HANDLED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # SLURM sends SIGUSR1 before the time is up, where it is asked to
ECHO_SECONDS = 1.0
"""A signal that comes again within this time is the same one: launchers pass on what the system sent to everyone."""


class Halt(BaseException):
    """Ends a run at once. It is no ``Exception``, so no library takes it for an error of its own and goes on."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Signals:
    """What has reached this process.

    Attributes:
        number: the first signal's number; 0 while there was none.
        remedy: how to go on after a stop at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.remedy = "nothing was trained yet; the same command starts again"
        self._at = 0.0
        self._waiting = False

    @contextmanager
    def waiting(self, remedy: str) -> Iterator[None]:
        """A signal is only noted meanwhile; whoever opened this looks at ``number`` where it can stop."""
        self.remedy, before, self._waiting = remedy, self._waiting, True
        try:
            yield
        finally:
            self._waiting = before

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or end the run with it."""
        now = time.monotonic()
        first, echo = not self.number, now - self._at < ECHO_SECONDS
        if first:
            self.number, self._at = number, now
        if self._waiting and (first or echo):
            return
        raise Halt(number)


_current: Signals | None = None


@contextmanager
def watching() -> Iterator[Signals]:
    """Handle signals from here on; inside another ``watching`` this is the outer one, beside the main thread nothing.

    A signal that somebody has this process ignore (``nohup``, a shell's background job) stays ignored.

    Raises:
        Interrupted: a signal ended what happens inside at once.
    """
    global _current
    if _current is not None:
        yield _current
        return
    if threading.current_thread() is not threading.main_thread():
        yield Signals()
        return
    _current = signals = Signals()
    before = {number: signal.getsignal(number) for number in HANDLED}
    ours = [number for number in HANDLED if before[number] is not signal.SIG_IGN]
    try:
        for number in ours:
            signal.signal(number, signals.handle)
        yield signals
    except Halt as halt:
        raise Interrupted(f"{halt}: stopped at once", signal_number=halt.number, remedy=signals.remedy) from None
    finally:
        _current = None
        for number in ours:
            signal.signal(number, before[number])


def going_on(command: Sequence[str]) -> str:
    """The command line that continues a run which ``command`` started: it resumes, and overwrites nothing."""
    words = iter(command)
    kept: list[str] = []
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_").rpartition(".")[2]
        if name == "resume_from_checkpoint":
            if not value:
                next(words, None)
        elif name not in ("overwrite_output_dir", "no_overwrite_output_dir"):
            kept.append(word)
    if kept[:3] == ["python", "-m", "tunesmith"]:
        kept[:3] = ["tunesmith"]
    return typed(*kept, "--resume_from_checkpoint", "latest")
