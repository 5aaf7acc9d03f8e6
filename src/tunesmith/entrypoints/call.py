"""What every call of the Python interface shares: its settings as a command line's words, and its errors as its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith import notices
from tunesmith.config.draft import COMMAND_LINE, Draft
from tunesmith.config.load import read, resolve_draft
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import as_arguments, parse_overrides
from tunesmith.config.permissions import PERMISSIONS
from tunesmith.config.readers.flat_json import ungrouped
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, ConfigErrors, DataError, TunesmithError, understood

if TYPE_CHECKING:
    from tunesmith.data.row import Row

Config = str | os.PathLike[str] | Mapping[str, Any]
"""A configuration file of any dialect, or settings by name; sections may hold theirs as mappings."""

CALL = "Python call"
"""Where a setting stands that a program gave, in errors."""


@contextmanager
def called() -> Iterator[None]:
    """Around every call: what was said before is forgotten, and what goes wrong is told as of this call."""
    notices.clear()
    try:
        yield
    except TunesmithError as error:
        _place(error)
        raise
    except (OSError, MemoryError) as error:
        raise understood(error) from error


def _place(error: TunesmithError) -> None:
    """Let an error about a command line, which there is none of, tell of the call."""
    if isinstance(error, ConfigErrors):
        for problem in error.problems:
            _place(problem)
        error.args = (" | ".join(problem.line() for problem in error.problems),)
    elif error.where == COMMAND_LINE:
        error.where = CALL
        error.args = (error.line(),)


def resolved_of(config: Config | None, dialect: str | None, settings: Mapping[str, Any]) -> tuple[Resolved, list[str]]:
    """The checked configuration, and the words of the command line that means the same.

    Raises:
        ConfigError: a file, a name or a value is wrong.
    """
    if config is None or isinstance(config, Mapping):
        written = {name: value for name, value, _ in ungrouped((k, v, CALL) for k, v in (config or {}).items())}
        words = as_arguments(written, NameTable()) + as_arguments(settings, NameTable())
        return resolve_draft(Draft(COMMAND_LINE, (), names=NameTable()), words), words
    if not isinstance(config, str | os.PathLike):
        kind = type(config).__name__
        raise ConfigError(f"config is a {kind}", where=CALL, remedy="give a file's name, or settings as a mapping")
    draft = read(os.fspath(config), dialect)
    words = as_arguments(settings, draft.names)
    return resolve_draft(draft, words), [os.fspath(config), *([f"--dialect={dialect}"] if dialect else []), *words]


def check_choice(num: int | None, row: int | None, where: str | None) -> None:
    """Refuse what ``preview`` cannot show.

    Raises:
        ConfigError: two choices at once, or one that there is not.
    """
    if row is not None and where is not None:
        raise ConfigError("row and where exclude each other", where=CALL, remedy="give one of them")
    if where not in (None, "cut", "dropped", "longest"):
        raise ConfigError(f"where = {where!r} is no choice", where=CALL, remedy="cut, dropped or longest")
    for name, value in (("num", num), ("row", row)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name} = {value!r} is no number of rows", where=CALL, remedy="count from 1")


def path_of(data: str | os.PathLike[str] | None) -> str | None:
    """The name of data as a text."""
    return None if data is None else os.fspath(data)


def rows_of(rows: str | os.PathLike[str] | Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a file or of a program, those of a program with an address as well.

    Raises:
        DataError: there are none, or one is no mapping.
    """
    from tunesmith.data.row import Row
    from tunesmith.data.rows import read_rows

    if isinstance(rows, str | os.PathLike):
        return read_rows(os.fspath(rows))
    found = []
    for number, values in enumerate(rows, start=1):
        if not isinstance(values, Mapping):
            what = f"is a {type(values).__name__}, and a row is a mapping of column to value"
            raise DataError(what, where=f"rows:{number}", remedy='for example {"question": "..."}')
        found.append(Row(dict(values), "rows", number))
    if not found:
        raise DataError("there are no rows", where=CALL)
    return found


def permitted(permissions: Mapping[str, Any]) -> dict[str, Any]:
    """What a call lets run, by path.

    Raises:
        ConfigError: another setting is among them.
    """
    settings = parse_overrides(as_arguments(permissions, NameTable()), NameTable())
    for setting in settings:
        if setting.spelling.path not in PERMISSIONS:
            raise ConfigError(f"{setting.name} is no permission", where=CALL, remedy="it cannot be changed by merging")
    return {setting.spelling.path: setting.value for setting in settings}
