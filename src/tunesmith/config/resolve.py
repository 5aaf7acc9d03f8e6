"""Layers of settings to one validated RunConfig in which every value knows its origin.

Precedence: schema defaults < a dialect's documented defaults < file < command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from tunesmith.config.adjust import adjust_defaults, align_saves
from tunesmith.config.draft import COMMAND_LINE, DEFAULT, Draft, Setting
from tunesmith.config.names import leaf_paths
from tunesmith.config.paths import expand
from tunesmith.config.permissions import COMMAND_LINE_ONLY, without_permissions
from tunesmith.config.plain import check_plain, shortened
from tunesmith.config.schema import SECTIONS, RunConfig
from tunesmith.errors import ConfigError, ConfigErrors, UnsafeError

NO_PERMISSIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Resolved:
    """A validated configuration and, for every path, where its value came from."""

    config: RunConfig
    origins: dict[str, str]

    def explicit(self, path: str) -> bool:
        """Whether somebody wrote this value, in a file or on the command line."""
        return not self.origins[path].startswith(DEFAULT)

    def values(self) -> dict[str, Any]:
        """Every value by its path, as plain data."""
        dumped = self.config.model_dump(mode="json")
        return {f"{section}.{name}": value for section, leaves in dumped.items() for name, value in leaves.items()}

    def fingerprint(self) -> str:
        """sha256 over all values: equal for equal configurations, whatever dialect they were written in."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()


def resolve(draft: Draft, overrides: Sequence[Setting] = ()) -> Resolved:
    """Put defaults, a draft and overrides on top of each other and validate each value (``rules`` sees them all).

    Raises:
        ConfigError: values have the wrong type or range; every problem is in the error.
        UnsafeError: a file gives itself the permission to run code.
    """
    values = schema_defaults()
    _refuse_two_spellings(draft, values)
    origins = dict.fromkeys(values, DEFAULT)
    written: dict[str, Setting] = {}
    for setting in [*draft.defaults, *draft.settings, *overrides]:
        path, convert = setting.spelling.path, setting.spelling.convert
        check_plain(setting.value, setting.name, setting.origin)
        value = convert(setting.value, values[path]) if convert else setting.value
        values[path] = expand(path, value, setting.origin)
        origins[path] = setting.origin
        written[path] = setting
    for path, remedy in COMMAND_LINE_ONLY.items():
        if values[path] and origins[path] != COMMAND_LINE:
            name = path.rpartition(".")[2]
            raise UnsafeError(f"{name} cannot be set in a file", where=origins[path], remedy=remedy)
    adjust_defaults(values, origins)
    if draft.align_saves:
        align_saves(values, origins)
    return Resolved(_validate(values, origins, written), origins)


def _refuse_two_spellings(draft: Draft, defaults: dict[str, Any]) -> None:
    """Refuse one file that says two things of one setting, under two of its names; between files, and on the command
    line, the later one counts.

    Raises:
        ConfigError: with both names and where the second stands.
    """
    first: dict[tuple[str, str], tuple[Setting, Any]] = {}
    for setting in draft.settings:
        if setting.origin == COMMAND_LINE:
            continue
        path, convert = setting.spelling.path, setting.spelling.convert
        value = convert(setting.value, defaults[path]) if convert else setting.value
        if convert and (value == defaults[path] or isinstance(value, dict)):
            continue  # one of several switches or parts of a setting, which leaves the others alone
        earlier, other = first.setdefault((path, setting.origin.rpartition(":")[0]), (setting, value))
        if earlier.name != setting.name and other != value:
            raise ConfigError(
                f"{earlier.name} = {shortened(earlier.value)} ({earlier.origin}) and {setting.name} = "
                f"{shortened(setting.value)} are two names of one setting",
                where=setting.origin,
                remedy="write one of them",
            )


def from_values(
    values: Mapping[str, Any],
    origins: dict[str, str] | None = None,
    *,
    permissions: Mapping[str, Any] = NO_PERMISSIONS,
) -> Resolved:
    """The configuration that ``Resolved.values`` described, for a run that is read back from its folder.

    Args:
        values: values by path, as anybody may have written them; permissions among them are left out.
        origins: where each value came from.
        permissions: those that today's command line gives, by path.

    Raises:
        ConfigError: a value is missing or not valid any more.
    """
    known = set(leaf_paths())
    told = without_permissions(values) | dict(permissions)
    merged = schema_defaults() | {path: value for path, value in told.items() if path in known}
    origins = dict.fromkeys(merged, DEFAULT) | (origins or {})
    for path, value in merged.items():
        check_plain(value, path, origins[path])
    return Resolved(_validate(merged, origins, {}), {path: origins[path] for path in merged})


def schema_defaults() -> dict[str, Any]:
    """The schema's own defaults by path; None stands for a value that has to be given."""
    return {
        f"{section}.{name}": None if field.is_required() else field.get_default(call_default_factory=True)
        for section, model in SECTIONS.items()
        for name, field in model.model_fields.items()
    }


def _validate(values: dict[str, Any], origins: dict[str, str], written: dict[str, Setting]) -> RunConfig:
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for path, value in values.items():
        section, name = path.split(".")
        nested[section][name] = value
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        problems = list(_problems(error, origins, written))
    raise problems[0] if len(problems) == 1 else ConfigErrors(problems)


def _problems(error: ValidationError, origins: dict[str, str], written: dict[str, Setting]) -> Iterable[ConfigError]:
    by_path: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for detail in error.errors():
        path = ".".join(str(part) for part in detail["loc"][:2])
        by_path.setdefault(path, []).append(detail["msg"].removeprefix("Input ").strip())
        inputs[path] = detail["input"]
    for path, messages in by_path.items():
        setting = written.get(path)
        if setting is None and inputs[path] is None:
            yield ConfigError(f"{path} is not set", remedy="give it in the file or on the command line")
            continue
        name = setting.name if setting else path
        value = setting.value if setting else inputs[path]
        yield ConfigError(f"{name} = {shortened(value)} {' or '.join(messages)}", where=origins.get(path, DEFAULT))
