"""What one of a run's processes works out, and all others on its machine then know.

The processes of one start meet at a small file in the machine's temporary folder. Who locks it first computes; the
others wait for the lock, however long that takes, and read. A process that dies loses its lock to the next one, which
computes in its place. No process is started here, and no group of processes is needed.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tunesmith import errors
from tunesmith.errors import Interrupted, TunesmithError
from tunesmith.train.processes import num_processes, rank

try:
    import fcntl
except ImportError:  # Windows: every process computes for itself
    fcntl = None  # type: ignore[assignment]

STARTED_BY = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
"""Variables that tell the processes of one start from those of another."""

_calls: Counter[tuple[Path, str]] = Counter()
_ours: set[Path] = set()
"""Files that go with this process, one for each of its runs."""


def once_per_machine(
    run: Path, what: str, compute: Callable[[], Any], *, holds: Callable[[Any], bool] = lambda value: True
) -> Any:
    """The value of ``compute()``, which one process of the run calls on each machine.

    All processes of the run must ask for the same things in the same order. A process that cannot meet the others (no
    temporary folder, or one without file locks) computes for itself.

    Args:
        run: the run folder.
        what: name of the value.
        compute: gives something that JSON can hold.
        holds: whether a value that another process left can still be used; it is computed again otherwise.

    Raises:
        TunesmithError: what ``compute`` raised, in every process that waited for it.
    """
    if num_processes() == 1 or fcntl is None:
        return compute()
    path = _meeting_place(run)
    _calls[path, what] += 1
    name = f"{what} {_calls[path, what]}"
    with _locked(path) as file:
        if file is None:
            return compute()
        known = _read(file)
        if name in known and "error" in known[name]:
            raise _to_error(known[name]["error"])
        if name in known and holds(known[name]["value"]):
            return known[name]["value"]
        try:
            value = compute()
        except Interrupted:
            raise  # a signal is for one process; who waits takes its place
        except TunesmithError as error:
            _write(file, known | {name: {"error": _from_error(error)}})
            raise
        _write(file, known | {name: {"value": value}})
        return value


def start_id() -> str:
    """What the processes of this start have in common on this machine, and those of no other start."""
    parent = os.getppid()
    try:  # numbers of processes are used again
        born = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        born = ""
    return " ".join([*(os.environ.get(name, "") for name in STARTED_BY), str(parent), born])


def _meeting_place(run: Path) -> Path:
    name = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"tunesmith-{os.getuid()}-{name}.json")


@contextmanager
def _locked(path: Path) -> Iterator[TextIO | None]:
    """The file, locked; None where that cannot be, or where somebody else's file is in its place."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield None
        return
    with open(number, "r+", encoding="utf-8") as file:
        yield file if os.fstat(number).st_uid == os.getuid() and _lock(number) else None
    if rank() == 0 and path not in _ours:
        _ours.add(path)
        atexit.register(_remove, path)


def _lock(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX)  # closing the file gives it back
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # it is somebody else's, or gone
        path.unlink()


def _read(file: TextIO) -> dict[str, Any]:
    """What the processes of this start have left; what others did, or half of it, is nothing."""
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError):
        return {}
    return dict(content["known"]) if content["start"] == start_id() else {}


def _write(file: TextIO, known: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    json.dump({"start": start_id(), "known": known}, file)
    file.flush()


def _from_error(error: TunesmithError) -> dict[str, Any]:
    kind = next(kind.__name__ for kind in type(error).__mro__ if vars(errors).get(kind.__name__) is kind)
    problems = [_from_error(problem) for problem in getattr(error, "problems", ())]
    return {"kind": kind, "what": error.what, "where": error.where, "remedy": error.remedy, "problems": problems}


def _to_error(values: dict[str, Any]) -> TunesmithError:
    kind = getattr(errors, values["kind"])
    if values["problems"]:
        return kind([_to_error(problem) for problem in values["problems"]])  # type: ignore[no-any-return]
    return kind(values["what"], where=values["where"], remedy=values["remedy"])  # type: ignore[no-any-return]
