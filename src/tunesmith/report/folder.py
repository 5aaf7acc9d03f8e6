"""The one writer of run-folder files: whole files appear atomically, lines are appended and flushed.

Model weights and checkpoints are not written here but by ``export`` and ``train/checkpoint``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

from tunesmith.config import files
from tunesmith.errors import StorageError

MAX_BYTES = 2**29
"""Of a file that is read whole."""


def check_new(folder: Path) -> None:
    """Refuse a place that is taken: a folder may be there if it is empty.

    Raises:
        StorageError: something is in it, or in its place.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise StorageError("is there already", where=str(folder), remedy="name a new folder")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, never a part.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.unlink(missing_ok=True)  # never through a link that somebody else put there
        with temporary.open("x", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder lasting: a file that was synced can still lose its name when the power goes.

    Raises:
        OSError: the folder cannot be read.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # storage that has nothing to sync in a folder
            raise
    finally:
        os.close(number)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, _as_json(value, indent=2) + "\n")


def _as_json(value: Any, indent: int | None = None) -> str:
    """JSON that UTF-8 can hold: half of a surrogate pair, as names of files may have, is written as an escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(_as_json(row) + "\n" for row in rows))


def append_jsonl(path: Path, *rows: Any) -> None:
    """Append each of ``rows`` as one line of JSON and flush them.

    Raises:
        StorageError: a line cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0, opener=_no_link) as stream:
            before = stream.tell()
            try:
                _write_whole(stream, "".join(_as_json(row) + "\n" for row in rows).encode())
            except OSError:
                stream.truncate(before)  # no half line is left
                raise
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _no_link(path: str, flags: int) -> int:
    """Opens a file to write, and nothing that a link, a pipe or a device has in its place."""
    number = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return number
    os.close(number)
    raise OSError(errno.EINVAL, "is a pipe or a device, not a file", path)


def _write_whole(stream: RawIOBase, text: bytes) -> None:
    while text:
        text = text[stream.write(text) or 0 :]


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        StorageError: the file is missing, none (a pipe, a device), too large, or not JSON.
    """
    try:
        return files.read_json(path, MAX_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:
        raise StorageError(f"not valid JSON: {error}", where=str(path)) from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """The objects of a JSON-lines file of a run folder."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            if line:
                yield files.parse_json(line)
        except ValueError as error:
            raise StorageError(f"not valid JSON: {error}", where=f"{path}:{number}") from error


def repair_jsonl(path: Path) -> int:
    """Take out of a JSON-lines file what a loss of power has torn; returns the bytes taken. Every whole line stays.

    Raises:
        StorageError: the file cannot be read or written.
    """
    try:
        content = files.read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    whole = b"".join(line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and _is_object(line))
    if len(whole) < len(content):
        write_text(path, whole.decode("utf-8"))
    return len(content) - len(whole)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(files.parse_json(line.decode("utf-8")), dict)
    except ValueError:
        return False
