"""What a reader returns: settings as somebody wrote them, each with its origin, not yet validated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.names import NameTable, Spelling
from tunesmith.errors import ConfigError

COMMAND_LINE = "command line"
DEFAULT = "default"
"""How the origin of a value begins that nobody wrote."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that somebody wrote: its spelling, where it belongs, and where it was written."""

    name: str
    value: Any
    origin: str
    spelling: Spelling


@dataclass(frozen=True, slots=True)
class Draft:
    """The settings of one source, in the order in which they were written."""

    dialect: str
    settings: tuple[Setting, ...]
    defaults: tuple[Setting, ...] = ()
    """What the dialect's document takes for granted where a file is silent."""
    names: NameTable = field(default_factory=NameTable)
    """The spellings that belong to this dialect, for overrides that follow."""
    align_saves: bool = False
    """Whether ``save_steps`` is moved to the next multiple of ``eval_steps`` when the best model is wanted."""
    evaluation_optional: bool = False
    """Whether early stopping and the best model that somebody asked for wait for evaluation rows, and end without."""
    left: tuple[tuple[str, str, str], ...] = ()
    """(key, place, reason) of what a file of another program says and nothing here means."""
    problems: tuple[ConfigError, ...] = ()
    """What the reader found wrong, names that no setting has above all; told together with wrong values."""


def apart(found: Iterable[Setting | ConfigError]) -> tuple[tuple[Setting, ...], tuple[ConfigError, ...]]:
    """What a reader found, settings and problems mixed in the order of the file, each by itself."""
    mixed = list(found)
    problems = tuple(one for one in mixed if isinstance(one, ConfigError))
    return tuple(one for one in mixed if isinstance(one, Setting)), problems


def dialect_defaults(values: dict[str, Any], names: NameTable, dialect: str) -> tuple[Setting, ...]:
    """A dialect's documented defaults as settings; their origin begins with ``default``."""
    origin = f"default of {dialect}"
    return tuple(Setting(name, value, origin, names.find(name, origin)) for name, value in values.items())


def shown(path: str | Path) -> str:
    """``path`` as a person would write it: relative to the working directory when it lies below it."""
    path = Path(path).absolute()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
