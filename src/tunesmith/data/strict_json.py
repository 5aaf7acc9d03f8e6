"""Strict JSON: what JSON does not know, and what could not be written again, is an error and never a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from math import inf, isfinite
from typing import Any

from tunesmith.errors import DataError

MAX_DEPTH = 100
MAX_DIGITS = 100
"""Of a whole number; more than 300 would be beyond any float."""


def parse_json(text: str) -> Any:
    """Strict JSON: no key twice, no NaN, no Infinity however written, no NUL, no lone surrogate, at most 100 levels.

    Raises:
        DataError: one of these, without an address.
        ValueError, RecursionError: as ``json`` raises them.
    """
    value = DECODER.decode(text)
    check_value(value, text)
    return value


def check_value(value: Any, text: str) -> None:
    """Depth and characters of a decoded value, looked at only where its text can hold something wrong.

    Raises:
        DataError: without an address.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(f"nested deeper than {MAX_DEPTH}")
    if "\\u" in text:
        for string in _strings(value):
            if "\0" in string:
                raise DataError("holds a NUL character", remedy="remove it")
            if any("\ud800" <= character <= "\udfff" for character in string):
                raise DataError("holds half of a surrogate pair (\\ud800 to \\udfff)", remedy="remove or repair it")


def check_numbers(value: Any) -> None:
    """Refuse numbers that JSON cannot write, which a table may hold.

    Raises:
        DataError: without an address.
    """
    with suppress(TypeError, ValueError, RecursionError):  # most values, in one go
        _FINITE.encode(value)
        return
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float) and not isfinite(item):
            raise DataError(f"holds the number {item}, which is not JSON", remedy="write null or a text")
        if isinstance(item, (dict, list)):
            waiting.extend(item.values() if isinstance(item, dict) else item)


def json_type(value: Any) -> str:
    """JSON's word for the type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {json.dumps(repeated)} occurs twice in one object")
    return values


def _no_constant(name: str) -> Any:
    raise DataError(f"{name} is not JSON", remedy="write null or a number")


def _bounded(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise DataError(f"a whole number of {len(digits)} digits", remedy="write it as a text")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (inf, -inf):
        raise DataError(f"{digits} is beyond every float", remedy="write it as a text")
    return value


DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_int=_bounded, parse_float=_finite
)
"""Refuses duplicate keys and constants; ``check_value`` looks at what it decoded."""


_FINITE = json.JSONEncoder(allow_nan=False, check_circular=False)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        containers = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        depth += bool(containers)
    return depth


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
