"""From a configuration file and a command line to a checked configuration: read, resolve, apply the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.config.draft import Draft, shown
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import parse_overrides
from tunesmith.config.readers import python_file
from tunesmith.config.resolve import Resolved, resolve
from tunesmith.config.rules import check
from tunesmith.errors import ConfigError

READERS: dict[str, Callable[[str | Path], Draft]] = {"python": python_file.read}
"""Dialect -> reader."""


def detect_dialect(path: str | Path) -> str:
    """The dialect of a configuration file.

    Raises:
        ConfigError: the file is missing or its kind is unknown.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a configuration file" if file.is_dir() else "no such configuration file"
        raise ConfigError(what, where=shown(file))
    if file.suffix == ".py":
        return "python"
    raise ConfigError(f"cannot tell the dialect of a {file.suffix or 'nameless'} file", where=shown(file))


def read(path: str | Path, dialect: str | None = None) -> Draft:
    """The settings of a configuration file, not yet validated."""
    found = detect_dialect(path) if dialect is None else dialect
    if found not in READERS:
        raise ConfigError(f"unknown dialect {found!r}", remedy=f"choose one of {', '.join(sorted(READERS))}")
    return READERS[found](path)


def load(path: str | Path | None, overrides: Sequence[str] = (), *, dialect: str | None = None) -> Resolved:
    """Read a configuration file, put the command line on top, and check everything.

    Args:
        path: configuration file; None for a run that is described by its command line alone.
        overrides: settings as written on a command line.
        dialect: the file's dialect; None detects it.

    Raises:
        ConfigError: anything in the file or on the command line is wrong.
    """
    draft = Draft("command line", (), names=NameTable()) if path is None else read(path, dialect)
    return finish(draft, overrides)


def finish(draft: Draft, overrides: Sequence[str] = ()) -> Resolved:
    """A draft with the command line on top, validated and checked against the rules."""
    resolved = resolve(draft, parse_overrides(overrides, draft.names))
    check(resolved)
    return resolved
