"""Secrets of this process: where their values are, and how a text loses them.

Secrets come from the environment (``.env`` included) and nowhere else. Settings are stored, shown and sent to trackers,
so that none may hold a secret; and no word that is printed or recorded does, whatever an error of a library or of a
user's file puts into its text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

NAMES = re.compile(
    r"(?:TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|API_?KEYS?|ACCESS_?KEYS?|SSHPASS)(?:_|$)"
    r"|(?:^|_)(?:PASS|CREDENTIALS?|KEYS?|KEY_ID|DSN|PAT|JWT|BEARER|AUTH|AUTHORIZATION|COOKIES?|WEBHOOK|SAS)(?:_|$)"
    r"|_PWD$|CONNECTION_STRING",
    re.IGNORECASE,
)
"""Names of environment variables that hold secrets: their values are looked for wherever words are written."""
SHAPES = re.compile(
    r"BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{20,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
"""What tokens and keys of well-known makers look like, whatever the variable is called."""
_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
"""That of a user in an address, of a proxy say."""
SUSPECTS = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(?:^|_)AUTH(?:_|$)", re.IGNORECASE)
"""Names that may stand for one: refusing to read too many costs a setting, hiding their values would cost words."""
SHORTEST = 8
"""Characters of the shortest value that is taken for a secret; a shorter one would be found in innocent words."""

DUMPED = 6
"""Variables with their values in one text from which on it is a dump of the environment."""
_DUMP = "<environment>"


def may_be_secret(name: str) -> bool:
    """Whether an environment variable of this name is better not read into a setting."""
    return bool(SUSPECTS.search(name) or NAMES.search(name))


def secret_in(text: str) -> str | None:
    """The name of an environment variable whose secret value stands in ``text``; None where none does."""
    return next((name for name, value in _secrets() if value in text), None)


def redacted(text: str) -> str:
    """``text`` with the name of the variable in the place of every secret value, and without a dump of all variables
    (``{'NAME': 'value', ...}``, or ``NAME=value``), of which many say more than their names tell."""
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """``redacted`` by the environment as it is now, for many texts."""
    return _redactor(tuple(os.environ.items()))


@lru_cache(maxsize=8)
def _redactor(environment: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    secrets = _long_first(environment)
    spelled = [pair for name, value in environment for pair in (f"{name!r}: {value!r}", f"{name}={value}")]

    def redact(text: str) -> str:
        text = _without_dump(text, spelled)
        for name, value in secrets:
            if value in text:
                text = text.replace(value, f"<{name}>")
        return text

    return redact


def _without_dump(text: str, spelled: Sequence[str]) -> str:
    if len(text) < SHORTEST * DUMPED:
        return text
    found = sorted((pair for pair in spelled if pair in text), key=len, reverse=True)
    if len(found) < DUMPED:
        return text
    for pair in found:
        text = text.replace(pair, _DUMP)
    return re.sub(rf"{_DUMP}(?:[\s,;]*{_DUMP})*", _DUMP, text)


def redacted_values(value: Any) -> Any:
    """Plain data with every text ``redacted``, keys included."""
    return _with_texts(value, redactor())


def _with_texts(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {_with_texts(key, redact): _with_texts(item, redact) for key, item in value.items()}
    return [_with_texts(item, redact) for item in value] if isinstance(value, list | tuple) else value


def _secrets() -> tuple[tuple[str, str], ...]:
    return _long_first(tuple(os.environ.items()))


@lru_cache(maxsize=8)
def _long_first(environment: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of a variable's name and a secret in it as texts may spell it, the longest first: one may be a part of
    another."""
    found = {
        (name, spelled)
        for name, value in environment
        for secret in _secret_parts(name, value)
        for spelled in _spellings(secret)
        if len(spelled) >= SHORTEST
    }
    return tuple(sorted(found, key=lambda pair: (-len(pair[1]), pair[0])))


def _secret_parts(name: str, value: str) -> list[str]:
    """What is secret of a variable: all of it, or the password of an address."""
    if (NAMES.search(name) and not _is_path(value)) or SHAPES.search(value):
        return [value]
    return _PASSWORD.findall(value)


def _spellings(secret: str) -> set[str]:
    """A secret as it stands in texts, in addresses, between quotation marks, on one line, and line by line."""
    lines = [line for line in secret.split("\n") if len(line) >= 2 * SHORTEST and not line.startswith("-----")]
    return {
        secret, quote(secret), quote(secret, safe=""), quote_plus(secret), unquote(secret), repr(secret)[1:-1],
        json.dumps(secret)[1:-1], " ".join(secret.split()), *(lines if "\n" in secret else ()),
    }  # fmt: skip


def _is_path(value: str) -> bool:
    """``SSH_KEY_FILE`` and the like hold the name of a file, which is told in errors."""
    return value.startswith(("/", "~/", "./")) and os.path.exists(os.path.expanduser(value))
