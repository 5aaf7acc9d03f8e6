"""What a setting's value may be made of, whichever source it comes from: what every later step can store and show."""

from __future__ import annotations

import math
from typing import Any

from tunesmith.errors import ConfigError, UnsafeError
from tunesmith.secrets import secret_in

MAX_DEPTH = 32
MAX_VALUES = 100_000
LARGEST_INT = 2**63 - 1


def check_plain(value: Any, name: str, where: str) -> None:
    """Refuse what run.json could not hold, a path could not contain or a message could not show.

    Args:
        value: as written, before its type is looked at.
        name: the setting's name, for messages.
        where: where it was written.

    Raises:
        ConfigError: a NUL character, half of a surrogate pair, a number beyond 64 bits, a number that is not finite
            inside a list or dict, too many values or too many levels.
        UnsafeError: the value of a secret.
    """
    level, depth, count = [value], 0, 0
    while level:
        inner: list[Any] = []
        for item in level:
            problem = _problem(item, inside=depth > 0)
            if problem:
                raise ConfigError(f"{name} holds {problem}", where=where)
            secret = secret_in(item) if isinstance(item, str) else None
            if secret:
                raise UnsafeError(
                    f"{name} holds the value of the environment variable {secret}",
                    where=where,
                    remedy="settings are stored with the run and shown; secrets are read from the environment itself",
                )
            if isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, (list, tuple)):
                inner += item
        depth, count = depth + 1, count + len(inner)
        if inner and (depth > MAX_DEPTH or count > MAX_VALUES):
            limit = f"more than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"more than {MAX_VALUES:,} values"
            raise ConfigError(f"{name} holds {limit}", where=where)
        level = inner


def _problem(item: Any, *, inside: bool) -> str | None:
    if isinstance(item, str):
        if "\0" in item:
            return "a NUL character"
        if any("\ud800" <= character <= "\udfff" for character in item):
            return "half of a surrogate pair (\\ud800 to \\udfff), or bytes that are not UTF-8"
    if isinstance(item, int) and abs(item) > LARGEST_INT:
        return "a whole number beyond 64 bits"
    if isinstance(item, float) and inside and not math.isfinite(item):
        return "a number that is not finite"
    return None


def shortened(value: Any, most: int = 200) -> str:
    """``repr`` of a value for a message, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"
