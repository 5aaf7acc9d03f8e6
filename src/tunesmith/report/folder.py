"""The one writer of run-folder files: whole files appear atomically, lines are appended and flushed.

Model weights and checkpoints are not written here but by ``export`` and ``train/checkpoint``.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

from tunesmith.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, never a part.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("w", encoding="utf-8") as stream:
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
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, *rows: Any) -> None:
    """Append each of ``rows`` as one line of JSON and flush them.

    Raises:
        StorageError: a line cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as stream:
            before = stream.tell()
            try:
                _write_whole(stream, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            except OSError:
                stream.truncate(before)  # no half line is left
                raise
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _write_whole(stream: RawIOBase, text: bytes) -> None:
    while text:
        text = text[stream.write(text) or 0 :]


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        StorageError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"not valid JSON: {error}", where=str(path)) from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """The objects of a JSON-lines file of a run folder."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise StorageError(f"not valid JSON: {error}", where=f"{path}:{number}") from error


def repair_jsonl(path: Path) -> int:
    """Cut a JSON-lines file after its last whole line, where a loss of power has torn it; returns the bytes cut off.

    Raises:
        StorageError: the file cannot be read or written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    whole = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or not _is_json(line):
            break
        whole += len(line)
    if whole < len(content):
        write_text(path, content[:whole].decode("utf-8"))
    return len(content) - whole


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
