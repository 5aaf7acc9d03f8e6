"""``~`` and ``${VAR}`` in settings: read once, here, so that they mean the same in every source."""

from __future__ import annotations

import os
import re
from typing import Any

from tunesmith.config.environment import variable
from tunesmith.config.plain import shortened
from tunesmith.errors import ConfigError

PATHS = frozenset(
    {
        "model.model_name_or_path", "model.tokenizer_name_or_path", "data.train_data", "data.eval_data",
        "data.template", "data.instruction", "data.cache_dir", "evaluation.task_function", "training.output_dir",
        "training.resume_from_checkpoint", "training.gen_questions_file", "evaluation.json_schema", "launch.nvme_path",
        "launch.deepspeed", "launch.accelerate_config",
    }
)  # fmt: skip
"""Settings whose value is a path, or may be one."""
_TEXTS = frozenset({"data.template", "data.instruction"})
"""Those that may be a text in place of a path: a template holds braces, a text blanks, and both stay as they are."""
LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes that systems give the name of a file and a whole path, its end counted."""
_VERBATIM = frozenset(
    {
        "data.completion_start", "data.new_tokens", "data.new_special_tokens", "data.columns", "data.roles",
        "data.chat_template_kwargs", "evaluation.labels", "model.eos_token", "model.pad_token",
    }
)  # fmt: skip
"""Settings that may hold any characters, and mean them."""
_NAMED = r"\$\{(?:oc\.env:)?(\w+)(?:,\s*([^{}$]*))?\}"
_VARIABLE = re.compile(rf"(?<!\\){_NAMED}")
_IN_PATHS = re.compile(rf"(?<!\\)(?:{_NAMED}|\$(\w+))")


def expand(path: str, value: Any, where: str) -> Any:
    """The value of a setting with its environment variables put in, lists and mappings entry by entry.

    ``${VAR}``, ``${oc.env:VAR}`` and ``${oc.env:VAR,default}`` are read in every setting but texts for the model;
    ``$VAR`` and ``~`` in paths alone. A backslash before the dollar keeps it.

    Args:
        path: the setting's path.
        value: as somebody wrote it.
        where: where the setting was written, for messages.

    Raises:
        ConfigError: a variable is not set, there is no such home folder, or no file can have such a name.
        UnsafeError: a variable may hold a secret.
    """
    if path in _VERBATIM:
        return value
    if isinstance(value, list):
        return [expand(path, one, where) for one in value]
    if isinstance(value, dict):
        return {key: expand(path, one, where) for key, one in value.items()}
    if not isinstance(value, str) or (path in _TEXTS and re.search(r"[\s{<]", _VARIABLE.sub("", value))):
        return value
    pattern = _IN_PATHS if path in PATHS else _VARIABLE
    text = pattern.sub(lambda match: _put_in(match, value, where), value)
    if path not in PATHS:
        return text
    expanded = os.path.expanduser(text)  # a Path would drop what a glob needs
    if text.startswith("~") and expanded == text and re.match(r"~[^/]*(/|$)", text):
        raise ConfigError(f"no home folder is known for {text.split('/')[0]!r}", where=where, remedy="write it out")
    if "://" not in expanded and _too_long(expanded):
        raise ConfigError(f"{path} = {shortened(expanded)} is longer than a path can be", where=where)
    return expanded


def _too_long(name: str) -> bool:
    parts = [len(part.encode("utf-8", "surrogatepass")) for part in name.split("/")]
    return sum(parts) + len(parts) > LONGEST_PATH or max(parts) > LONGEST_NAME


def _put_in(match: re.Match[str], value: str, where: str) -> str:
    groups = match.groups()
    name = groups[0] or groups[-1]
    try:
        return variable(name, where) if groups[1] is None else variable(name, where, groups[1])
    except ConfigError as error:
        raise ConfigError(f"{value!r} {error.what}", where=where, remedy=error.remedy) from None


def inside(name: str) -> str:
    """``name`` if it is one of a folder below another, whoever wrote it.

    Raises:
        ValueError: it is absolute, leads upwards, or holds a character that no name of a folder should.
    """
    if name.startswith(("/", "~")) or ".." in re.split(r"[/\\]", name) or re.search(r"[\x00-\x1f\x7f\\:]", name):
        raise ValueError("must be the name of a folder inside output_dir")
    return name
