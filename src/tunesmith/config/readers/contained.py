"""A child process that cannot outstay its time, and takes everything it has started with it.

The child leads a session and process group of its own, which is killed. What has left that group becomes a child of
ours when its parent ends (we are a "subreaper" meanwhile, where the system knows that), and is killed as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_ROUNDS = 1_000
"""How often what is left over is looked for; each round ends all that is there."""


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[int, bytes, bytes]:
    """Exit status and output of a child; nothing that it started is left.

    Output goes to files, whose size the child limits: a pipe would have to be emptied into our memory.

    Raises:
        subprocess.TimeoutExpired: it was still running after ``seconds``.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _heir_of_strays():
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment), start_new_session=True
            )
            try:
                returncode = child.wait(seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        out.seek(0)
        err.seek(0)
        return returncode, out.read(), err.read()


@contextlib.contextmanager
def _heir_of_strays() -> Iterator[None]:
    """Meanwhile, processes whose parents end become ours; afterwards those that came so are killed."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):  # not Linux: the process group alone is ended
        yield
        return
    was = ctypes.c_int()
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    before = _children()
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for _ in range(_ROUNDS):
            strays = _children() - before
            if not strays:
                break
            for stray in strays:
                _end(stray)
        prctl(_PR_SET_CHILD_SUBREAPER, was.value, 0, 0, 0)


def _children() -> set[int]:
    """Our children in other sessions than ours; what another thread of ours starts is in ours."""
    import psutil

    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(child.pid) != os.getsid(0):
                found.add(child.pid)
    return found


def _end(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
