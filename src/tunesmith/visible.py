"""Text of somebody else's made safe to show: the one place that decides which characters reach a terminal.

Generated text, rows, names of files, columns, labels and models, templates and values may hold what steers a terminal,
hides, or reorders what is read. Files keep such text as it is; whatever is shown goes through here.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that steer, hide or reorder text."""


def visible(text: str) -> str:
    """Text in which every character that steers, hides or reorders is written as an escape; line ends stay."""
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def one_line(text: str) -> str:
    """The same on one line: a line end is shown, so that text cannot look like a line of ours."""
    return visible(text).replace("\n", "↵")


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON for terminals and programs: hidden characters are JSON's own escapes, so that the data are the same."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.isascii() and "\x7f" not in text else "".join(map(_json_escaped, text))


def _is_hidden(character: str) -> bool:
    return character != "\n" and unicodedata.category(character) in HIDDEN


def _visible(character: str) -> str:
    if not _is_hidden(character):
        return character
    if character == "\t":
        return "⇥"
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escaped(character: str) -> str:
    if not _is_hidden(character):
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
