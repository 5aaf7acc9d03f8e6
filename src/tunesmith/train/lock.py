"""One run in a folder at a time: who holds ``output_dir``, and whether the holder still lives.

The holder locks a small file that names it (``flock``: the lock ends with the process, however that ends). A child that
outlives a killed holder may keep the lock open; so a holder that is dead on this machine counts for nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.config.files import parse_json
from tunesmith.errors import ConfigError, StorageError
from tunesmith.report.belongings import LOCK
from tunesmith.report.record import now

try:
    import fcntl
except ImportError:  # Windows has no flock: there the file alone says who holds the folder
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_ATTEMPTS = 5


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder, which must exist, for the time of the block.

    Raises:
        StorageError: another process holds it; with its number, machine and start.
        ConfigError: a file of somebody else has the lock's name.
    """
    path = folder / LOCK
    number = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that was removed meanwhile has no lock to give back
            if os.fstat(number).st_ino == path.stat().st_ino:
                path.unlink()
        os.close(number)


def is_held(folder: Path) -> bool:
    """Whether a process that is not known to be gone holds a run folder. Nothing is locked or changed by asking."""
    try:
        number = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        holder = _read(number, folder / LOCK)
    except (OSError, ConfigError):
        return False
    finally:
        os.close(number)
    return bool(holder) and not _is_dead(holder)


def _acquire(path: Path) -> int:
    """The open and locked file, which names this process."""
    for _ in range(_ATTEMPTS):
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StorageError(f"cannot write there: {error.strerror}", where=str(path.parent)) from error
        try:
            if _take(number, path):
                return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)
    raise StorageError("another process takes and leaves this folder all the time", where=str(path.parent))


def _take(number: int, path: Path) -> bool:
    """Lock the file and write our name into it; False where it is not the file at ``path`` any more.

    Raises:
        StorageError: somebody holds it.
    """
    locked = _lock(number, path.parent)
    holder = _read(number, path)
    if locked is False or (locked is None and holder):
        if holder and not _is_dead(holder):
            raise _in_use(holder, path)
        if not holder:  # it was locked a moment ago, and its name is about to follow
            raise StorageError("another process has just started to train there", where=str(path.parent))
        path.unlink(missing_ok=True)
        return False
    if holder:
        notices.notify(f"process {holder['pid']} on {holder['host']} left {path.parent} without giving it back")
    if not path.exists() or os.fstat(number).st_ino != path.stat().st_ino:
        return False
    os.ftruncate(number, 0)
    os.pwrite(number, json.dumps(_myself()).encode(), 0)
    os.fsync(number)
    return True


def _lock(number: int, folder: Path) -> bool | None:
    """Whether the lock is ours now; None where the storage has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return False
        notices.notify(f"the storage of {folder} has no file locks: a run on another machine is seen by its name alone")
        return None
    return True


def _read(number: int, path: Path) -> dict[str, Any]:
    """Whoever the file names; empty for a new file.

    Raises:
        ConfigError: it is no file of ours.
    """
    text = os.pread(number, 4096, 0)
    if not text.strip(b"\0 \n"):
        return {}
    try:
        holder = parse_json(text)
        if {"pid", "host", "started", "born", "space"} <= holder.keys():
            return dict(holder)
    except (ValueError, AttributeError):
        pass
    raise ConfigError(f"{path.name} is not a file of ours", where=str(path), remedy="choose another output_dir")


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": now(), "born": _born(pid), "space": _space()}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to be gone; of another machine or container nothing is known."""
    if holder["host"] != socket.gethostname() or holder["space"] != _space() or not isinstance(holder["pid"], int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return bool(_born(holder["pid"]) != holder["born"])


def _born(pid: int) -> str:
    """When a process started, in the kernel's count: numbers of processes are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _space() -> str:
    """Within what the numbers of processes mean something: this start of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _in_use(holder: dict[str, Any], path: Path) -> StorageError:
    return StorageError(
        f"process {holder['pid']} on {holder['host']} trains there since {holder['started']}",
        where=str(path.parent),
        remedy=f"wait for it or choose another output_dir; if it is gone, remove {path}",
    )
