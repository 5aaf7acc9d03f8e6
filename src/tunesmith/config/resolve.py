"""Layers of settings to one validated RunConfig in which every value knows its origin.

Precedence: schema defaults < a dialect's documented defaults < file < command line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from tunesmith.config.adjust import adjust_defaults, align_saves, evaluation_is_optional
from tunesmith.config.draft import COMMAND_LINE, DEFAULT, Draft, Setting
from tunesmith.config.names import UnknownName, leaf_paths
from tunesmith.config.overrides import parse_value
from tunesmith.config.paths import PATHS, expand
from tunesmith.config.permissions import COMMAND_LINE_ONLY, without_permissions
from tunesmith.config.plain import check_plain, shortened
from tunesmith.config.schema import SECTIONS, RunConfig
from tunesmith.errors import ConfigError, UnsafeError, did_you_mean, raise_together
from tunesmith.program import named


class NotSet(ConfigError):
    """A value that has to be given and is not."""


class WrongValue(ConfigError):
    """A value that cannot even be looked at, with the path of its setting."""

    def __init__(self, path: str, problem: ConfigError, where: str) -> None:
        self.path = path
        super().__init__(problem.what, where=problem.where or where, remedy=problem.remedy)


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


@dataclass(frozen=True, slots=True)
class Attempt:
    """Settings laid on each other as far as they can be: where a value is wrong, another stands in its place.

    Attributes:
        resolved: the configuration, which is that of the settings where nothing was replaced.
        problems: what is wrong with single values.
        replaced: paths whose value nobody meant.
    """

    resolved: Resolved
    problems: tuple[ConfigError, ...] = ()
    replaced: frozenset[str] = frozenset()


def resolve(draft: Draft, overrides: Sequence[Setting] = ()) -> Resolved:
    """Put defaults, a draft and overrides on top of each other and validate each value (``rules`` sees them all).

    Raises:
        ConfigError: names are unknown, or values have the wrong type or range; every problem is in the error.
        UnsafeError: a file gives itself the permission to run code.
    """
    attempt = try_to_resolve(draft, overrides)
    raise_together(without_consequences([*draft.problems, *attempt.problems]))
    return attempt.resolved


def without_consequences(problems: Sequence[ConfigError]) -> list[ConfigError]:
    """The problems without a value that is missing where some name is unknown, which may have been meant to give it."""
    unknown = any(isinstance(problem, UnknownName) for problem in problems)
    return [problem for problem in problems if not (unknown and isinstance(problem, NotSet))]


def try_to_resolve(draft: Draft, overrides: Sequence[Setting] = ()) -> Attempt:
    """``resolve``, with what is wrong beside what could be made of the rest.

    Raises:
        UnsafeError: a file gives itself the permission to run code.
    """
    values = schema_defaults()
    origins = dict.fromkeys(values, DEFAULT)
    written: dict[str, Setting] = {}
    problems: list[ConfigError] = list(said_twice(draft.settings))
    for setting in [*draft.defaults, *draft.settings, *overrides]:
        path = setting.spelling.path
        try:
            values[path] = _value(setting, values[path])
        except ConfigError as problem:
            problems.append(problem)
            continue
        origins[path] = setting.origin
        written[path] = setting
    for path, remedy in COMMAND_LINE_ONLY.items():
        if values[path] and origins[path] != COMMAND_LINE:
            name = path.rpartition(".")[2]
            raise UnsafeError(f"{name} cannot be set in a file", where=origins[path], remedy=remedy)
    adjust_defaults(values, origins)
    if draft.evaluation_optional:
        evaluation_is_optional(values, origins)
    if draft.align_saves:
        align_saves(values, origins)
    wrong = _wrong_values(values, origins, written)
    config = _validated(values, wrong)
    meant = {path for problem in draft.problems if isinstance(problem, UnknownName) for path in problem.meant}
    broken = {problem.path for problem in problems if isinstance(problem, WrongValue)}
    news = [problem for path, problem in wrong.items() if path not in broken]  # what was refused is not "not set"
    return Attempt(Resolved(config, origins), (*problems, *news), frozenset({*wrong, *meant, *broken}))


def _value(setting: Setting, current: Any) -> Any:
    path, convert = setting.spelling.path, setting.spelling.convert
    try:
        check_plain(setting.value, setting.name, setting.origin)
        given = expand(path, setting.value, setting.origin)
        if path not in PATHS and isinstance(given, str) and given != setting.value:
            given = parse_value(given, setting.spelling)  # the variable may stand for a number
        return convert(given, current) if convert else given
    except ConfigError as problem:
        raise WrongValue(path, problem, setting.origin) from None


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


def said_twice(settings: Sequence[Setting]) -> Iterator[ConfigError]:
    """Settings that one file says under two names; of parts of a setting (a column, a switch) each may be said."""
    said: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        key = setting.spelling.path, setting.origin.rpartition(":")[0] or setting.origin
        if setting.origin == COMMAND_LINE or (setting.spelling.part and setting.value in (None, False)):
            continue  # a switch that is off leaves the others alone
        other = said.setdefault(key, setting)
        means_the_same = setting.spelling.part is None or setting.spelling.convert is other.spelling.convert
        same = other is setting or setting.value == other.value  # not a number differs from itself
        if (same and means_the_same) or (other.spelling.part and setting.spelling.part == "entry"):
            continue
        yield ConfigError(
            f"{other.name} = {shortened(other.value)} ({other.origin}) and {setting.name} = {shortened(setting.value)} "
            "are two names of one setting",
            where=setting.origin,
            remedy="write one of them",
        )


def schema_defaults() -> dict[str, Any]:
    """The schema's own defaults by path; None stands for a value that has to be given."""
    return {
        f"{section}.{name}": None if field.is_required() else field.get_default(call_default_factory=True)
        for section, model in SECTIONS.items()
        for name, field in model.model_fields.items()
    }


def _validate(values: dict[str, Any], origins: dict[str, str], written: dict[str, Setting]) -> RunConfig:
    raise_together(list(_wrong_values(values, origins, written).values()))
    return RunConfig.model_validate(_nested(values))


def _validated(values: dict[str, Any], wrong: Collection[str]) -> RunConfig:
    """The configuration with schema defaults in the place of wrong values."""
    defaults = schema_defaults() | {"model.model_name_or_path": "?"}
    return RunConfig.model_validate(_nested(values | {path: defaults[path] for path in wrong}))


def _nested(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for path, value in values.items():
        section, name = path.split(".")
        nested[section][name] = value
    return nested


def _wrong_values(
    values: dict[str, Any], origins: dict[str, str], written: dict[str, Setting]
) -> dict[str, ConfigError]:
    """Path -> what is wrong with its value."""
    try:
        RunConfig.model_validate(_nested(values))
    except ValidationError as error:
        return dict(_problems(error, origins, written))
    return {}


def _problems(
    error: ValidationError, origins: dict[str, str], written: dict[str, Setting]
) -> Iterable[tuple[str, ConfigError]]:
    by_path: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    meant: dict[str, str] = {}
    for detail in error.errors():
        path = ".".join(str(part) for part in detail["loc"][:2])
        of_several = path in written and isinstance(written[path].value, list) and isinstance(detail["loc"][-1], int)
        of_list = f"holds {detail['input']!r}, which " if of_several else ""
        by_path.setdefault(path, []).append(of_list + detail["msg"].removeprefix("Input ").strip())
        inputs[path] = detail["input"]
        if detail["type"] == "literal_error":
            choices = re.findall("'([^']*)'", detail["ctx"]["expected"])
            meant[path] = did_you_mean(str(detail["input"]), choices, meant.get(path, ""))
    for path, messages in by_path.items():
        setting = written.get(path)
        if setting is None and inputs[path] is None:
            yield path, NotSet(f"{path} is not set", remedy="give it in the file or on the command line")
            continue
        name = setting.name if setting else path
        value = setting.value if setting else inputs[path]
        what = f"{name} = {shortened(value)} {' or '.join(dict.fromkeys(messages))}"
        if path.endswith("_steps") and isinstance(value, float) and 0 < value < 1:
            what = f"{name} = {value} is a share of the run, and steps are whole numbers"
            remedy = named("`tunesmith check` counts the steps")
            yield path, ConfigError(what, where=origins.get(path, DEFAULT), remedy=remedy)
            continue
        yield path, ConfigError(what, where=origins.get(path, DEFAULT), remedy=meant.get(path) or None)
