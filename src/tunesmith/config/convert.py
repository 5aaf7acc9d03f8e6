"""Writes a configuration in any dialect, so that reading it back gives the same RunConfig.

Only what differs from the target dialect's defaults is written, under that dialect's own names. Nothing is printed.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tunesmith.config.adjust import NEEDS_EVALUATION
from tunesmith.config.load import READERS, read
from tunesmith.config.names import NameTable, Spelling, leaf_type
from tunesmith.config.permissions import COMMAND_LINE_ONLY
from tunesmith.config.readers.python_file import DOCUMENT_NAMES
from tunesmith.config.resolve import Resolved, resolve, schema_defaults
from tunesmith.errors import ConfigError

SUFFIXES = {"python": ".py", "json": ".json", "yaml": ".yaml", "hydra": ".yaml"}
"""Dialect -> suffix of its files."""

IMPLIED = {"adapter.lora_r": "adapter.use_lora"}
"""In Hydra files adapters are on when ``model.lora`` describes them, so a rank is always written where they are on."""

Written = list[tuple[str, Any]]
"""(name in the dialect, value as written there), in the schema's order."""


def convert(resolved: Resolved, dialect: str, source: str) -> str:
    """The text of a configuration file that says the same as ``resolved``.

    Args:
        resolved: the configuration.
        dialect: ``python``, ``json``, ``yaml`` or ``hydra``.
        source: where the configuration came from, for the comment at the top (JSON has no comments).

    Raises:
        ConfigError: the dialect is unknown, or cannot say one of the values.
    """
    if dialect not in READERS:
        raise ConfigError(f"unknown dialect {dialect!r}", remedy=f"choose one of {', '.join(READERS)}")
    text = _WRITERS[dialect](needed(resolved, dialect), f"Written by tunesmith from {' '.join(source.split())}.")
    _check(text, dialect, resolved)
    return text


def needed(resolved: Resolved, dialect: str) -> Written:
    """The settings that a file of ``dialect`` has to hold, where its defaults are not what ``resolved`` says."""
    names, preferred, before = dialect_of(dialect)
    values = resolved.values()
    implied = IMPLIED if dialect == "hydra" else {}
    written: Written = []
    for path, value in values.items():
        if path in COMMAND_LINE_ONLY or path in implied.values():
            continue
        wish = path in NEEDS_EVALUATION and value != NEEDS_EVALUATION[path]  # left out, it would end without evaluation
        if value == before[path] and not wish and not values.get(implied.get(path, "")):
            continue
        candidates = [name for name in preferred if names.find(name, dialect).path == path]
        if implied and path.startswith("adapter.") and not values["adapter.use_lora"]:
            candidates = []  # the place under `model.lora` would switch adapters on
        if isinstance(value, dict):
            entries = _entries(value, before[path], candidates, names)
            if entries is not None:
                written += entries
                continue
        written.append(_spelled(path, value, before[path], [*candidates, *_standard(path, dialect)], names))
    return written


def dialect_of(dialect: str) -> tuple[NameTable, tuple[str, ...], dict[str, Any]]:
    """All names of a dialect, those that its document uses, and the values where a file of it is silent."""
    reader = importlib.import_module(READERS[dialect])
    names: NameTable = reader.NAMES
    values = schema_defaults()
    for name, value in reader.DEFAULTS.items():
        spelling = names.find(name, dialect)
        values[spelling.path] = spelling.convert(value, values[spelling.path]) if spelling.convert else value
    document = {"python": DOCUMENT_NAMES, "json": tuple(reader.DEFAULTS), "hydra": ("data_file",)}
    return names, (*document.get(dialect, ()), *reader.SPELLINGS), values


def name_in(path: str, dialect: str) -> str:
    """The name that a file of ``dialect`` has for the whole of a setting."""
    names, preferred, _ = dialect_of(dialect)
    whole = (
        name for name in preferred if names.find(name, dialect).path == path and not names.find(name, dialect).part
    )
    return next(iter([*whole, *_standard(path, dialect)]))


def _standard(path: str, dialect: str) -> Iterator[str]:
    """The schema's own names for ``path``, as the dialect's files hold them."""
    section, name = path.split(".")
    at_home = {
        ("yaml", "data"): f"dataset.{name}",
        ("hydra", "training"): f"train.{name}",
        ("hydra", "quantization"): f"model.{name}",
        ("hydra", "data"): name,
        ("hydra", "tracking"): name,
    }.get((dialect, section))
    if at_home is not None:
        yield at_home
    yield path if dialect in ("yaml", "hydra") else name


def _spelled(path: str, value: Any, before: Any, candidates: Iterable[str], names: NameTable) -> tuple[str, Any]:
    """The first of the names under which ``value`` can be written, and what to write."""
    for name in candidates:
        spelling = names.find(name, path)
        for text in (value, True):  # switches such as use_packing stand for a value when they are on
            meaning = spelling.convert(text, before) if spelling.convert else text
            if _accepts(spelling, text) and meaning == value:
                return name, _as_written(text)
    raise ConfigError(f"{path} = {value!r} cannot be written in this dialect")


def _as_written(value: Any) -> Any:
    """A whole number without its point, as a person writes it."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else value


def _accepts(spelling: Spelling, value: Any) -> bool:
    expected = leaf_type(spelling.path) if spelling.type is None else spelling.type
    try:
        TypeAdapter(expected, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return False
    return True


def _entries(value: dict[str, Any], before: Any, candidates: Iterable[str], names: NameTable) -> Written | None:
    """A dict written entry by entry (``question_column``); None where the dialect has no name for one of them."""
    written: Written = []
    now = before
    for name in candidates:
        spelling = names.find(name, name)
        convert_one = spelling.convert
        if convert_one is None or spelling.part != "entry":
            continue
        for given in value.values():
            then = convert_one(given, now)
            if then != now and all(value.get(key) == entry for key, entry in then.items()):
                written.append((name, given))
                now = then
                break
    return written if written and now == value else None


def _python(written: Written, comment: str) -> str:
    return "\n".join([f"# {ascii(comment)[1:-1]}", "", *(f"{name} = {value!a}" for name, value in written)]) + "\n"


def _json(written: Written, comment: str) -> str:
    return json.dumps(dict(written), indent=2) + "\n"


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML 1.1 or 1.2 would take for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[.0-9][-+._0-9a-zA-Z]*$"), list("-+.0123456789")
)
_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))


def _yaml(written: Written, comment: str) -> str:
    tree: dict[str, Any] = {}
    for name, value in written:
        *above, last = name.split(".")
        place = tree
        for section in above:
            place = place.setdefault(section, {})
        place[last] = value
    body = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return f"# {ascii(comment)[1:-1]}\n\n{body}"


def _hydra(written: Written, comment: str) -> str:
    plain = [(name, _without_interpolation(value)) for name, value in written]
    return _yaml([("defaults", ["_self_"]), *plain], comment)


def _without_interpolation(value: Any) -> Any:
    """``value`` with every ``${`` escaped, which OmegaConf would resolve."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found.group(1) * 2 + r"\${", value)
    if isinstance(value, list):
        return [_without_interpolation(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_interpolation(item) for key, item in value.items()}
    return value


_WRITERS: dict[str, Callable[[Written, str], str]] = {"python": _python, "json": _json, "yaml": _yaml, "hydra": _hydra}


def _check(text: str, dialect: str, resolved: Resolved) -> None:
    """Read ``text`` back and compare.

    Raises:
        ConfigError: it does not say the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"converted{SUFFIXES[dialect]}")
        file.write_text(text, encoding="utf-8")
        again = resolve(read(file, dialect))
    theirs = again.values() | {path: resolved.values()[path] for path in COMMAND_LINE_ONLY}
    for path, value in resolved.values().items():
        if theirs[path] != value:
            raise ConfigError(
                f"{path} = {value!r} cannot be said in the dialect {dialect}: it would be {theirs[path]!r}",
                remedy="choose another dialect",
            )
