"""From a configuration file and a command line to a checked configuration: read, resolve, apply the rules."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.config.draft import Draft, Setting, shown
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import read_overrides
from tunesmith.config.readers.yaml_lines import read_yaml
from tunesmith.config.resolve import Resolved, try_to_resolve, without_consequences
from tunesmith.config.rules import find_problems
from tunesmith.errors import ConfigError, did_you_mean, raise_together

READERS: dict[str, str] = {
    "python": "tunesmith.config.readers.python_file",
    "json": "tunesmith.config.readers.flat_json",
    "hydra": "tunesmith.config.readers.hydra_yaml",
    "yaml": "tunesmith.config.readers.sectioned_yaml",
}
"""Dialect -> the module that reads it, imported only when a file of that dialect is read."""

FOREIGN = ("axolotl", "llama-factory", "torchtune", "trl", "unsloth")
"""Programs whose files are read as well (``config/coming_from``)."""
DIALECTS = (*READERS, *FOREIGN)

_HYDRA_KEYS = {"defaults", "train", "data_file", "input_key", "output_key", "hydra"}
_SECTION_KEYS = {"model", "dataset", "training", "data", "adapter", "quantization", "evaluation", "tracking", "launch"}


def detect_dialect(path: str | Path) -> str:
    """The dialect of a configuration file, by its suffix and the keys at its top.

    Raises:
        ConfigError: the file is missing or its dialect cannot be told.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a configuration file" if file.is_dir() else "no such configuration file"
        raise ConfigError(what, where=shown(file), remedy=_nearest(file))
    if file.suffix == ".py":
        return "python"
    if file.suffix == ".json":
        found = _foreign(file)
        return "json" if found in (None, "trl") else found  # TRL's names are those of a flat JSON
    if file.suffix in (".yaml", ".yml"):
        value = read_yaml(file).value
        if not isinstance(value, dict):
            raise ConfigError("holds no settings, which are written as NAME: VALUE", where=shown(file))
        keys = set(value)
        found = _foreign(file)
        if found is not None:
            return found
        if keys & _HYDRA_KEYS:
            return "hydra"
        if keys & _SECTION_KEYS:
            return "yaml"
    raise ConfigError(
        "cannot tell the dialect of this file", where=shown(file), remedy=f"name it: --dialect {' | '.join(DIALECTS)}"
    )


def _nearest(file: Path) -> str | None:
    """The files beside it that a configuration's name may have been meant for."""
    if not file.parent.is_dir():
        return f"there is no folder {shown(file.parent)} either"
    names = [one.name for one in file.parent.iterdir() if one.suffix in (".py", ".json", ".yaml", ".yml")]
    return did_you_mean(file.name, names, "", folder=file.parent) or None


def _foreign(file: Path) -> str | None:
    """The program that a YAML or JSON file was written for, where it is another one."""
    from tunesmith.config.coming_from.table import recognise

    try:
        return recognise(read_yaml(file).value)
    except ConfigError:  # its own reader says what is wrong with it
        return None


def read(path: str | Path, dialect: str | None = None) -> Draft:
    """The settings of a configuration file, not yet validated; names that no setting has are problems of the draft.

    Raises:
        ConfigError: the file cannot be read, or the dialect is unknown.
    """
    found = detect_dialect(path) if dialect is None else dialect
    if found in FOREIGN:
        from tunesmith.config.coming_from import table

        return table.read(path, found)
    if found not in READERS:
        raise ConfigError(f"unknown dialect {found!r}", remedy=f"choose one of {', '.join(DIALECTS)}")
    reader: Callable[[str | Path], Draft] = importlib.import_module(READERS[found]).read
    return reader(path)


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
    return resolve_draft(draft, overrides)


def resolve_draft(draft: Draft, overrides: Sequence[str] = ()) -> Resolved:
    """A draft with the command line on top, validated and checked against the rules.

    Raises:
        ConfigError: names, values or what they mean together are wrong; every problem is in the error.
    """
    settings, problems = read_overrides(overrides, draft.names)
    return resolve_checked(draft, settings, problems)


def resolve_checked(draft: Draft, settings: Sequence[Setting], problems: Sequence[ConfigError] = ()) -> Resolved:
    """The same for settings that are read already, with the problems of reading them."""
    attempt = try_to_resolve(draft, settings)
    together = find_problems(attempt.resolved, without=attempt.replaced)
    raise_together(without_consequences([*draft.problems, *problems, *attempt.problems, *together]))
    return attempt.resolved
