"""Every error that tunesmith raises on purpose, with the exit code of each.

An error says what is wrong, where it stands and what to do about it. Printing and exiting happen in ``cli`` alone.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tunesmith.secrets import redacted

MOST_SAID = 1_000
"""Characters of what a library says that are told."""


class TunesmithError(Exception):
    """An error with an address.

    Args:
        what: what is wrong, in one sentence without a final full stop.
        where: ``file:line``, ``command line``, a repository id ... or None where there is no single place.
        remedy: what to do about it, or None where the sentence already says it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(self.line())

    def line(self) -> str:
        """The error on one line, without secrets: ``where: what; remedy``."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text}; {self.remedy}" if self.remedy else text
        return redacted(" ".join(text.split()))

    def lines(self) -> list[str]:
        """One line per problem; a plain error has one."""
        return [self.line()]


class ConfigError(TunesmithError):
    """A setting, a configuration file or a command line is wrong."""

    exit_code = 2


MOST_TOLD = 20
"""Problems of one configuration that are told."""


class ConfigErrors(ConfigError):
    """Several configuration problems, found in one go."""

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        self.problems = tuple(problems)
        super().__init__(" | ".join(problem.line() for problem in problems))

    def lines(self) -> list[str]:
        told = [problem.line() for problem in self.problems[:MOST_TOLD]]
        more = len(self.problems) - len(told)
        return [*told, f"and {more} more problems of the configuration"] if more else told


def raise_together(problems: Sequence[ConfigError]) -> None:
    """Raise what was found wrong with a configuration: a single problem as it is, several in one error."""
    if problems:
        raise problems[0] if len(problems) == 1 else ConfigErrors(problems)


class DataError(TunesmithError):
    """A data file or one of its rows is wrong."""

    exit_code = 3

    def cause(self) -> str:
        """What is wrong, whatever the row: the words without their numbers and without what the row itself holds."""
        return re.sub(r"\d[\d,.]*|\[[^\]]*\]", "#", self.what)


class DataErrors(DataError):
    """Several wrong rows, found in one go; told by cause."""

    def __init__(self, problems: Sequence[DataError]) -> None:
        self.problems = tuple(problems)
        super().__init__(" | ".join(self.lines()))

    def lines(self) -> list[str]:
        """One line for each cause: its first row, what is wrong, and how many rows more have it."""
        by_cause: dict[str, list[DataError]] = {}
        for problem in self.problems:
            by_cause.setdefault(problem.cause(), []).append(problem)
        return [f"{found[0].line()}{_and_more(found)}" for found in by_cause.values()]


def _and_more(found: Sequence[DataError]) -> str:
    if len(found) == 1:
        return ""
    places = [str(problem.where).rpartition(":")[2] for problem in found[1:4]]
    shown = f": {', '.join(places)}{' ...' if len(found) > 4 else ''}" if all(map(str.isdigit, places)) else ""
    return f" (and {len(found) - 1:,} more{shown})"


class ModelError(TunesmithError):
    """A model, tokenizer, adapter or the machine's abilities do not allow what was asked."""

    exit_code = 4


class NumericsError(TunesmithError):
    """A loss or gradient is not finite, or a result differs from what it must equal."""

    exit_code = 5


class StorageError(TunesmithError):
    """A run folder or checkpoint cannot be written, read or trusted."""

    exit_code = 6


class UnsafeError(TunesmithError):
    """Something would run code, or open a file, that nobody allowed."""

    exit_code = 7


class Interrupted(TunesmithError):
    """A signal stopped the run after it had saved; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, what: str, *, signal_number: int, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.exit_code = 128 + signal_number


def understood(error: Exception) -> TunesmithError:
    """An error that nothing of ours has put into words, as one of ours: what the machine refuses has its own code, and
    what is left is a bug (exit code 1)."""
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, MemoryError):
        return ModelError(
            "this machine's memory does not hold what was asked for", remedy="ask for less, or use a larger machine"
        )
    if isinstance(error, OSError) and error.errno and error.strerror:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - a word, and no file
            remedy = "free some, or set TMPDIR and cache_dir elsewhere"
            return StorageError(f"no space left ({error.strerror})", where=str(where), remedy=remedy)
        where = str(error.filename) if error.filename else None
        return StorageError(error.strerror, where=where, remedy="check the path, its permissions and the free space")
    said = redacted(" ".join(str(error).split()))[:MOST_SAID]  # half of a secret would not be known as one
    return TunesmithError(f"{type(error).__name__}: {said}", remedy="--debug shows where")


def did_you_mean(name: str, known: Iterable[str], otherwise: str, *, folder: Path | None = None) -> str:
    """The remedy for a name that does not exist: the known names most like it, or ``otherwise`` where none is like it.

    Args:
        folder: where the names are files or folders, the folder they lie in; it is told with each.
    """
    near = difflib.get_close_matches(name, list(known), n=3)
    told = [repr(str(folder / one) if folder else one) for one in near]
    return f"did you mean {' or '.join(told)}?" if told else otherwise
