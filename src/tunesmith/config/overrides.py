"""Settings on a command line: ``--name value``, ``--name=value``, ``--flag``, ``--no_flag``, ``section.name=value``."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tunesmith.config.draft import COMMAND_LINE, Setting
from tunesmith.config.files import parse_json
from tunesmith.config.names import NameTable, Spelling, leaf_type
from tunesmith.errors import ConfigError, raise_together

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NOTHING = {"none", "null", "~", ""}


def parse_overrides(tokens: Sequence[str], names: NameTable) -> list[Setting]:
    """Turn the settings on a command line into drafted ones; a later one beats an earlier one.

    Raises:
        ConfigError: a name is unknown, a value is missing, or a token is neither a setting nor a value; all are told.
    """
    settings, problems = read_overrides(tokens, names)
    raise_together(problems)
    return settings


def read_overrides(tokens: Sequence[str], names: NameTable) -> tuple[list[Setting], list[ConfigError]]:
    """The settings on a command line as drafted ones, and what is wrong with the others."""
    settings: list[Setting] = []
    problems: list[ConfigError] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        try:
            settings.append(_setting(token, rest, names))
        except ConfigError as problem:
            problems.append(problem)
            if token.startswith("--") and "=" not in token:  # whatever its values were
                while rest and not rest[0].startswith("--") and "=" not in rest[0]:
                    rest.pop(0)
    return settings, problems


def as_arguments(values: Mapping[str, Any], names: NameTable) -> list[str]:
    """Settings by name, as a program holds them, in the words of a command line that says the same.

    Args:
        values: value by name, under any accepted spelling; paths may be ``Path`` objects.
        names: the spellings of the dialect that they are laid upon.

    Raises:
        ConfigError: a name cannot stand on a command line, or a value is no plain data.
    """
    return [_argument(name, value, names) for name, value in values.items()]


def _argument(name: str, value: Any, names: NameTable) -> str:
    if not isinstance(name, str) or not name or "=" in name:
        raise ConfigError(f"{name!r} is no name of a setting", where=COMMAND_LINE)
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(plain, str) and name in names and parse_value(plain, names.find(name, COMMAND_LINE)) == plain:
        return f"--{name}={plain}"
    try:
        return f"--{name}={json.dumps(plain, ensure_ascii=False)}"
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise ConfigError(
            f"{name} is a {kind}", where=COMMAND_LINE, remedy="settings are texts, numbers, lists and mappings of them"
        ) from None


def _setting(token: str, rest: list[str], names: NameTable) -> Setting:
    if token.startswith("--"):
        return _long_option(token, rest, names)
    if "=" in token:
        name, _, text = token.partition("=")
        name = _plain(name)
        spelling = names.find(name, COMMAND_LINE)
        return Setting(name, parse_value(text, spelling), COMMAND_LINE, spelling)
    raise ConfigError(
        f"do not know what to do with {token!r}",
        where=COMMAND_LINE,
        remedy="settings are written --name value or section.name=value",
    )


def _long_option(token: str, rest: list[str], names: NameTable) -> Setting:
    name, equals, text = token[2:].partition("=")
    name = name.replace("-", "_")
    if name not in names and name.startswith("no_") and not equals:
        spelling = names.find(name[3:], COMMAND_LINE) if name[3:] in names else names.find(name, COMMAND_LINE)
        if not _takes_boolean(spelling):
            raise ConfigError(f"{token} makes no sense: {name[3:]} is not a switch", where=COMMAND_LINE)
        return Setting(name[3:], False, COMMAND_LINE, spelling)
    spelling = names.find(name, COMMAND_LINE)
    if equals:
        return Setting(name, parse_value(text, spelling), COMMAND_LINE, spelling)
    if _takes_boolean(spelling) and not (rest and rest[0].lower() in (_BOOLEANS | dict.fromkeys(_NOTHING))):
        accepts_text = rest and not _is_setting(rest[0], names) and _is_valid(rest[0], spelling)
        if not accepts_text:
            return Setting(name, True, COMMAND_LINE, spelling)
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"{token} needs a value", where=COMMAND_LINE)
    values = [rest.pop(0)]
    while _takes_list(spelling) and rest and not rest[0].startswith("--") and ("=" not in rest[0] or _is_file(rest[0])):
        values.append(rest.pop(0))
    value = parse_value(values[0], spelling) if len(values) == 1 else _first_valid(_lists(values), spelling)
    return Setting(name, value, COMMAND_LINE, spelling)


def _is_file(text: str) -> bool:
    """Whether a word with ``=`` in it is no setting but a path or pattern of files, as in partitioned data
    (``day=1/a.jsonl``)."""
    return os.path.exists(text) or any(glob.iglob(text))


def _is_setting(token: str, names: NameTable) -> bool:
    return token.startswith("--") or ("=" in token and _plain(token.partition("=")[0]) in names)


def _plain(name: str) -> str:
    """A name as the table spells it; Hydra writes ``+name`` for one that is new."""
    return name.replace("-", "_").lstrip("+")


def parse_value(text: str, spelling: Spelling) -> Any:
    """The value that ``text`` stands for, given the type of the setting.

    Text that fits no reading is returned as it is, for validation to refuse.
    """
    return _first_valid(_readings(text), spelling)


def _first_valid(readings: Iterator[Any], spelling: Spelling) -> Any:
    adapter, candidates = _adapter(spelling), list(readings)
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
    return candidates[0]


def _number(text: str) -> Any:
    for read in (_strict_json, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


def _readings(text: str) -> Iterator[Any]:
    for read in (_strict_json, float):
        with contextlib.suppress(ValueError):
            yield read(text)
    if text.lower() in _BOOLEANS:
        yield _BOOLEANS[text.lower()]
    if text.lower() in _NOTHING:
        yield None
    yield text
    inside = text.strip().removeprefix("[").removesuffix("]")
    parts = [part.strip().strip("'\"") for part in inside.split(",") if part.strip()]
    yield from _lists(parts)
    if parts and all("=" in part for part in parts):  # columns: prompt=question,completion=answer
        pairs = [part.partition("=")[::2] for part in parts]
        yield _unique([(key.strip(), _number(value.strip())) for key, value in pairs])
        yield _unique([(key.strip(), value.strip()) for key, value in pairs])


def _lists(parts: list[str]) -> Iterator[list[Any]]:
    """The list of texts, and the list of what they stand for, where each stands for a value of JSON."""
    yield parts
    with contextlib.suppress(ValueError):
        yield [_strict_json(part) for part in parts]


def _strict_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ConfigError: it is JSON, and a key stands twice in one object.
        ValueError: it is not JSON.
    """
    return parse_json(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ConfigError("a key stands twice in one object", where=COMMAND_LINE, remedy="write each key once")
    return values


def _written_type(spelling: Spelling) -> Any:
    return spelling.type if spelling.type is not None else leaf_type(spelling.path)


def _adapter(spelling: Spelling) -> TypeAdapter[Any]:
    return TypeAdapter(_written_type(spelling))


def _is_valid(text: str, spelling: Spelling) -> bool:
    adapter = _adapter(spelling)
    for candidate in _readings(text):
        try:
            adapter.validate_python(candidate, strict=True)
            return True
        except ValidationError:
            continue
    return False


def _alternatives(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _alternatives(argument)
    elif origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    else:
        yield origin or annotation


def accepted_types(spelling: Spelling) -> set[Any]:
    """The plain types among which a setting's value may be (``int``, ``float``, ``bool``, ``list`` ...)."""
    return set(_alternatives(_written_type(spelling)))


def _takes_boolean(spelling: Spelling) -> bool:
    return bool in accepted_types(spelling)


def _takes_list(spelling: Spelling) -> bool:
    return list in accepted_types(spelling)
