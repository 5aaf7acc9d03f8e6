"""Secrets of this process: where their values are, and how a text loses them.

Secrets come from the environment (``.env`` included) and nowhere else. Settings are stored, shown and sent to trackers,
so that none may hold a secret; and no word that is printed or recorded does, whatever an error of a library or of a
user's file puts into its text.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

NAMES = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|KEY|KEY_ID|DSN)(?:_|$)", re.IGNORECASE
)
"""Names of environment variables that hold secrets: their values are looked for wherever words are written."""
SUSPECTS = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(?:^|_)AUTH(?:_|$)", re.IGNORECASE)
"""Names that may stand for one: refusing to read too many costs a setting, hiding their values would cost words."""
SHORTEST = 8
"""Characters of the shortest value that is taken for a secret; a shorter one would be found in innocent words."""

DUMPED = 6
"""Variables with their values in one text from which on it is a dump of the environment."""
_DUMP = "<environment>"


def may_be_secret(name: str) -> bool:
    """Whether an environment variable of this name is better not read into a setting."""
    return bool(SUSPECTS.search(name))


def secret_in(text: str) -> str | None:
    """The name of an environment variable whose secret value stands in ``text``; None where none does."""
    return next((name for name, value in _secrets() if value in text), None)


def redacted(text: str) -> str:
    """``text`` with the name of the variable in the place of every secret value, and without a dump of all variables
    (``{'NAME': 'value', ...}``, or ``NAME=value``), of which many say more than their names tell."""
    text = _without_dump(text)
    for name, value in _secrets():
        if value in text:
            text = text.replace(value, f"<{name}>")
    return text


def _without_dump(text: str) -> str:
    if len(text) < SHORTEST * DUMPED:
        return text
    spelled = [pair for name, value in os.environ.items() for pair in (f"{name!r}: {value!r}", f"{name}={value}")]
    found = sorted((pair for pair in spelled if pair in text), key=len, reverse=True)
    if len(found) < DUMPED:
        return text
    for pair in found:
        text = text.replace(pair, _DUMP)
    return re.sub(rf"{_DUMP}(?:[\s,;]*{_DUMP})*", _DUMP, text)


def redacted_values(value: Any) -> Any:
    """Plain data with every text ``redacted``, keys included."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_values(key): redacted_values(item) for key, item in value.items()}
    return [redacted_values(item) for item in value] if isinstance(value, list | tuple) else value


def _secrets() -> tuple[tuple[str, str], ...]:
    return _long_first(tuple((name, value) for name, value in os.environ.items() if NAMES.search(name)))


@lru_cache(maxsize=8)
def _long_first(found: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of name and value, the longest value first: one may be a part of another."""
    kept = [(name, value) for name, value in found if len(value) >= SHORTEST and not _is_path(value)]
    return tuple(sorted(kept, key=lambda pair: -len(pair[1])))


def _is_path(value: str) -> bool:
    """``SSH_KEY_FILE`` and the like hold the name of a file, which is told in errors."""
    return value.startswith(("/", "~/", "./")) and os.path.exists(os.path.expanduser(value))
