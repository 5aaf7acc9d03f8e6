"""Texts that settings name: instructions, templates and what a string template is made of."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith import assets
from tunesmith.config.files import read_bytes
from tunesmith.errors import ConfigError


def read_instruction(instruction: str | None) -> str | None:
    """The system message: the text of a file, or the setting itself when it names no file, as a text of several lines
    never does.

    Raises:
        ConfigError: it looks like a file name and there is no such file.
    """
    if instruction is None or not instruction.strip():
        return None
    short = len(instruction) < 1024 and "\n" not in instruction
    if short and Path(instruction).is_file():
        return read_text(instruction, "instruction").strip() or None
    if short and re.search(r"\.(txt|md|jinja|prompt)$", instruction) and not re.search(r"\s", instruction):
        raise ConfigError("no such file", where=f"data.instruction = {instruction}")
    return instruction.strip()


def read_text(name: str, setting: str) -> str:
    """A small text file that a setting names, without its final line end.

    Raises:
        ConfigError: it cannot be read or is not UTF-8.
    """
    try:
        text = read_bytes(Path(name).expanduser()).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        remedy = f"name a file or one of {', '.join(assets.template_names())}" if setting == "template" else None
        raise ConfigError(
            f"the file cannot be read ({reason})", where=f"data.{setting} = {name}", remedy=remedy
        ) from None


def parse_string_template(template: str, where: str) -> tuple[str, ...]:
    """Literal parts and placeholders of a string template; other braces are literal text.

    Raises:
        ConfigError: ``{query}`` or ``{output}`` does not occur exactly once, in this order.
    """
    parts = tuple(part for part in re.split(r"(\{query\}|\{output\}|\{instruction\})", template) if part)
    counts = {name: parts.count(name) for name in ("{query}", "{output}")}
    if set(counts.values()) != {1} or parts.index("{query}") > parts.index("{output}"):
        raise ConfigError(
            "a template needs {query} and then {output}, each once",
            where=f"data.template = {where}",
            remedy="a chat template ends in .jinja",
        )
    return parts
