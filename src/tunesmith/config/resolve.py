"""Layers of settings to one validated RunConfig in which every value knows its origin.

Precedence: schema defaults < a dialect's documented defaults < file < command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tunesmith import notices
from tunesmith.config.draft import COMMAND_LINE, Draft, Setting
from tunesmith.config.names import leaf_paths
from tunesmith.config.schema import SECTIONS, RunConfig
from tunesmith.errors import ConfigError, ConfigErrors, UnsafeError

DEFAULT = "default"


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
        UnsafeError: a file gives itself the permission to run a model's code.
    """
    values = schema_defaults()
    origins = dict.fromkeys(values, DEFAULT)
    written: dict[str, Setting] = {}
    for setting in [*draft.defaults, *draft.settings, *overrides]:
        path, convert = setting.spelling.path, setting.spelling.convert
        values[path] = convert(setting.value, values[path]) if convert else setting.value
        origins[path] = setting.origin
        written[path] = setting
    if values["model.allow_remote_code"] and origins["model.allow_remote_code"] != COMMAND_LINE:
        raise UnsafeError(
            "allow_remote_code cannot be set in a file",
            where=origins["model.allow_remote_code"],
            remedy="give --allow_remote_code on the command line if you trust the model's code",
        )
    _defaults_give_way(values, origins)
    if draft.align_saves:
        _align_saves(values, origins)
    return Resolved(_validate(values, origins, written), origins)


GIVES_WAY: tuple[tuple[str, str, bool], ...] = (
    ("training.fp16", "training.bf16", True),
    ("training.bf16", "training.fp16", True),
    ("quantization.load_in_4bit", "quantization.load_in_8bit", True),
    ("quantization.load_in_8bit", "quantization.load_in_4bit", True),
    ("quantization.load_in_4bit", "adapter.use_lora", False),
    ("quantization.load_in_8bit", "adapter.use_lora", False),
)
"""(a switch, another path, its value): a dialect's default for the switch ends where somebody wrote that value."""


def _defaults_give_way(values: dict[str, Any], origins: dict[str, str]) -> None:
    """A dialect's default does not contradict what somebody wrote: ``--bf16`` is enough where fp16 is a default."""
    for path, other, value in GIVES_WAY:
        is_default, is_written = origins[path].startswith(DEFAULT), not origins[other].startswith(DEFAULT)
        if values[path] is True and is_default and is_written and values[other] is value:
            name, written = path.partition(".")[2], f"{other.partition('.')[2]} {str(value).lower()}"
            notices.say(f"{name} is only a {origins[path]} and gives way to {written} ({origins[other]})")
            origins[path] += f" (gives way to {written})"
            values[path] = False


def _align_saves(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Document 3 saves every 500 steps, evaluates every 200 and wants the best model: save at the next multiple."""
    save_steps, eval_steps = values["training.save_steps"], values["training.eval_steps"]
    evaluates = values["data.eval_data"] or values["data.eval_split"] or values["data.dev_split"]
    wanted = values["training.load_best_model_at_end"] and evaluates
    if not wanted or not isinstance(save_steps, int) or not isinstance(eval_steps, int) or eval_steps <= 0:
        return
    aligned = -(-save_steps // eval_steps) * eval_steps
    if aligned != save_steps:
        notices.say(f"save_steps {save_steps} becomes {aligned}, a multiple of eval_steps {eval_steps}: "
                    "only evaluated checkpoints can be the best one")  # fmt: skip
        origins["training.save_steps"] += f" ({save_steps}, aligned with eval_steps)"
        values["training.save_steps"] = aligned


def from_values(values: dict[str, Any], origins: dict[str, str] | None = None) -> Resolved:
    """The configuration that ``Resolved.values`` described, for a run that is read back from its folder.

    Raises:
        ConfigError: a value is missing or not valid any more.
    """
    known = set(leaf_paths())
    merged = schema_defaults() | {path: value for path, value in values.items() if path in known}
    origins = dict.fromkeys(merged, DEFAULT) | (origins or {})
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
        yield ConfigError(f"{name} = {value!r} {' or '.join(messages)}", where=origins.get(path, DEFAULT))
