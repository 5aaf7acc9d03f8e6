"""YAML with line numbers, read by the YAML 1.2 core schema: ``1e-4`` is a number and ``no`` is a text.

Duplicate keys and tags that name Python objects are errors. JSON is read by the same rules. No dialect is known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.draft import shown
from tunesmith.config.files import read_bytes
from tunesmith.errors import ConfigError, UnsafeError

MAX_BYTES = 200_000
"""More would take the parser, which is written in Python, many seconds."""
MAX_NODES = 100_000

KeyPath = tuple[str | int, ...]


class _CoreLoader(yaml.SafeLoader):
    """A SafeLoader whose plain scalars follow YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the base declares it


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_KINDS: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", None),
    "float": (_FLOAT, lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))),
}
"""Kind -> how its scalars are spelled, and what they mean."""
for _tag, _first in [("null", ["~", "n", "N", ""]), ("bool", list("tTfF")), ("int", list("-+0123456789")),
                     ("float", list("-+0123456789."))]:  # fmt: skip
    _pattern = re.compile(rf"^(?:{_KINDS[_tag][0]})$")
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


@dataclass(frozen=True, slots=True)
class Lines:
    """A document as plain data, and the line of every key in it."""

    value: Any
    lines: dict[KeyPath, int]
    file: str

    def where(self, *path: str | int) -> str:
        """``file:line`` of the key at ``path``; of the nearest key above it when the path itself is not in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.file}:{self.lines[path]}" if path in self.lines else self.file


def read_yaml(path: str | Path) -> Lines:
    """Read a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, not UTF-8, too large, not YAML, or has a key twice.
        UnsafeError: a tag asks for a Python object.
    """
    file = shown(path)
    try:
        raw = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror or error}", where=file) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}", where=file) from None
    try:
        return _parse(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", where=where) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an escape beyond the last character
        raise ConfigError(f"not valid YAML: {error}", where=file) from None
    except RecursionError:
        raise ConfigError("nested too deeply", where=file, remedy="settings are nested a few levels at most") from None


def _parse(text: str, file: str) -> Lines:
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Lines({}, {}, file)
        walk = _Walk(loader, file)
        return Lines(walk.value(node, ()), walk.lines, file)
    finally:
        loader.dispose()


class _Walk:
    def __init__(self, loader: _CoreLoader, file: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._loader = loader
        self._file = file
        self._num_nodes = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._num_nodes += 1
        where = f"{self._file}:{node.start_mark.line + 1}"
        if self._num_nodes > MAX_NODES:
            raise ConfigError(f"more than {MAX_NODES:,} values once its aliases are followed", where=where)
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise UnsafeError(f"tag {node.tag!r} is not allowed", where=where, remedy="settings are plain values")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, where)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _whole(str(key_node.value), f"{self._file}:{line}")
            if key in result:
                first = self.lines[(*path, key)]
                what = f"key {key!r} stands twice (first in line {first})"
                raise ConfigError(what, where=f"{self._file}:{line}", remedy="keep one of them")
            self.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.Node, where: str) -> Any:
        kind, text = node.tag.rpartition(":")[2], str(node.value)
        if kind in _KINDS and not isinstance(node.value, list):
            pattern, convert = _KINDS[kind]
            if re.fullmatch(pattern, text) is None:  # a tag that somebody wrote
                raise ConfigError(f"{text[:40]!r} is not a YAML value of the kind {kind}", where=where)
            return _integer(text, where) if convert is None else convert(text)
        if kind == "str":
            return _whole(text, where)
        raise ConfigError(f"a value of kind {kind!r} is not understood here", where=where)


def _integer(text: str, where: str) -> int:
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    except ValueError:  # thousands of digits
        raise ConfigError(f"{text[:12]}... cannot be read as a number", where=where) from None


def _whole(text: str, where: str) -> str:
    """The text itself; half of a surrogate pair could not be written anywhere later."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(
            "holds half of a surrogate pair (\\ud800 to \\udfff)", where=where, remedy="write the character itself"
        )
    return text
