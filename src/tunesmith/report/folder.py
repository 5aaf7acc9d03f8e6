"""The one writer of run-folder files: whole files appear atomically, lines are appended and flushed.

Model weights and checkpoints are not written here but by ``export`` and ``train/checkpoint``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
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
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(path)) from error


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
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(path)) from error


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
