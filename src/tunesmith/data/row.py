"""One row and its address, and the errors that many rows of a source may have together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.data.strict_json import json_type
from tunesmith.errors import DataError, DataErrors

MAX_PROBLEMS = 20
MOST_COUNTED = 10_000
"""Wrong rows of a source after which nobody counts on."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the file holds it: its values, the file (or hub data set) and the line, counted from 1."""

    values: dict[str, Any]
    source: str
    line: int

    @property
    def where(self) -> str:
        """The row's address, ``source:line``."""
        return f"{self.source}:{self.line}"


def value_of(row: Row, key: str, *others: str) -> Any:
    """A value that has to be there and not null; ``others`` are named beside ``key`` where it is missing.

    Raises:
        DataError: it is not.
    """
    if key not in row.values:
        expected = " and ".join(f'"{name}"' for name in (key, *others))
        raise DataError(
            f'no "{key}"; the row has {keys_of(row)}',
            where=row.where,
            remedy=f"expected {expected}; {rename_advice(key)}",
        )
    value = row.values[key]
    if value is None:
        raise DataError(f'"{key}" is null', where=row.where, remedy="write a text or remove the row")
    return value


def rename_advice(key: str, column: str = "COLUMN") -> str:
    """How to say, on a command line and in YAML, which column of a file holds what a format calls ``key``."""
    return f"where another column holds it: --columns {key}={column} (YAML: dataset: columns: {{{key}: {column}}})"


def string_of(row: Row, key: str, *others: str) -> str:
    """A text that has to be there.

    Raises:
        DataError: it is not, or is no text.
    """
    return as_string(value_of(row, key, *others), row, key)


def as_string(value: Any, row: Row, path: str) -> str:
    """``value``, which stands at ``path`` of the row, once it is known to be a text.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, str):
        raise DataError(f'"{path}" must be a string, this is {json_type(value)}', where=row.where)
    return value


def holds_nothing(value: Any) -> bool:
    """Whether a value is null or empty, or a text that is blank or, as tables hold them, an empty list or object."""
    return value in (None, [], {}) or (isinstance(value, str) and value.strip() in ("", "[]", "{}"))


def keys_of(row: Row) -> str:
    """The names of the row's columns, for messages."""
    return "[" + ", ".join(f'"{key}"' for key in row.values) + "]"


class Problems:
    """Collects errors of one source and stops once ``MAX_PROBLEMS`` of them have different causes, or after many."""

    def __init__(self) -> None:
        self.found: list[DataError] = []
        self._causes: set[str] = set()

    def add(self, problem: DataError) -> None:
        self.found.append(problem)
        self._causes.add(problem.cause())
        if len(self._causes) >= MAX_PROBLEMS or len(self.found) >= MOST_COUNTED:
            self.stop()

    def stop(self) -> None:
        """Raise what was collected, if anything was."""
        if self.found:
            raise self.found[0] if len(self.found) == 1 else DataErrors(self.found)
