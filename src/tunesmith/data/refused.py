"""Rows that cannot be used, gathered until it is told what is wrong with all of them."""

from __future__ import annotations

from tunesmith.data.masking import TooLongError
from tunesmith.data.row import MAX_PROBLEMS, Problems
from tunesmith.errors import DataError, DataErrors


class Refused:
    """Too long rows are counted to the end, all others stop the reading at ``MAX_PROBLEMS``."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.problems = Problems()
        self.too_long: list[TooLongError] = []
        self.longest = 0
        self.num_too_long = 0

    @property
    def any(self) -> bool:
        """Whether a row was refused."""
        return bool(self.problems.found or self.num_too_long)

    def add(self, problem: DataError) -> None:
        """Remember what is wrong with a row.

        Raises:
            DataError: it is enough.
        """
        if not isinstance(problem, TooLongError):
            self.problems.add(problem)
            return
        self.num_too_long += 1
        self.longest = max(self.longest, problem.needed)
        if len(self.too_long) < MAX_PROBLEMS:
            self.too_long.append(problem)

    def stop(self) -> None:
        """Raise what was gathered, if anything was.

        Raises:
            DataError: all problems, and of too long rows the number and the length that would do for all.
        """
        if self.num_too_long > 1:
            summary = DataError(
                f"{self.num_too_long} rows are longer than max_length {self.max_length}",
                remedy=f"max_length: {self.longest} fits them all",
            )
            raise DataErrors([*self.problems.found, *self.too_long[:1], summary])
        self.problems.found += self.too_long
        self.problems.stop()
