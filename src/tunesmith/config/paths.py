"""``~`` and ``$VAR`` in settings that are paths: read once, here, so that they mean the same in every source."""

from __future__ import annotations

import os
import re
from typing import Any

from tunesmith.config.plain import shortened
from tunesmith.errors import ConfigError, UnsafeError
from tunesmith.secrets import secret_in

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
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand(path: str, value: Any, where: str) -> Any:
    """The value of a setting with its home folder and environment variables put in; lists entry by entry.

    Args:
        path: the setting's path; any that is no path keeps its value.
        where: where the setting was written, for messages.

    Raises:
        ConfigError: a variable is not set, there is no such home folder, or no file can have such a name.
        UnsafeError: a variable holds a secret.
    """
    if path not in PATHS:
        return value
    if isinstance(value, list):
        return [expand(path, one, where) for one in value]
    if not isinstance(value, str) or (path in _TEXTS and re.search(r"[\s{<]", re.sub(r"\$\{\w+\}", "", value))):
        return value
    text = _VARIABLE.sub(lambda match: _variable(match[1] or match[2], value, where), value)
    expanded = os.path.expanduser(text)  # a Path would drop what a glob needs
    if text.startswith("~") and expanded == text and re.match(r"~[^/]*(/|$)", text):
        raise ConfigError(f"no home folder is known for {text.split('/')[0]!r}", where=where, remedy="write it out")
    if "://" not in expanded and _too_long(expanded):
        raise ConfigError(f"{path} = {shortened(expanded)} is longer than a path can be", where=where)
    return expanded


def _too_long(name: str) -> bool:
    parts = [len(part.encode("utf-8", "surrogatepass")) for part in name.split("/")]
    return sum(parts) + len(parts) > LONGEST_PATH or max(parts) > LONGEST_NAME


def inside(name: str) -> str:
    """``name`` if it is one of a folder below another, whoever wrote it.

    Raises:
        ValueError: it is absolute, leads upwards, or holds a character that no name of a folder should.
    """
    if name.startswith(("/", "~")) or ".." in re.split(r"[/\\]", name) or re.search(r"[\x00-\x1f\x7f\\:]", name):
        raise ValueError("must be the name of a folder inside output_dir")
    return name


def _variable(name: str, value: str, where: str) -> str:
    if name not in os.environ:
        raise ConfigError(f"{value!r} names the variable {name}, which is not set", where=where, remedy="set it")
    if secret_in(os.environ[name]):
        raise UnsafeError(
            f"{value!r} names the variable {name}, which holds a secret", where=where, remedy="settings are stored"
        )
    return os.environ[name]
