"""One row and its address, and the errors that many rows of a source may have together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import DataError, DataErrors

MAX_PROBLEMS = 20


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


class Problems:
    """Collects errors of one source and stops after ``MAX_PROBLEMS``."""

    def __init__(self) -> None:
        self.found: list[DataError] = []

    def add(self, problem: DataError) -> None:
        self.found.append(problem)
        if len(self.found) >= MAX_PROBLEMS:
            self.stop()

    def stop(self) -> None:
        """Raise what was collected, if anything was."""
        if self.found:
            raise self.found[0] if len(self.found) == 1 else DataErrors(self.found)
