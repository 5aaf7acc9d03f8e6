"""Rows of JSON lines and of JSON arrays, read strictly, each with its line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tunesmith.data.lines import decode, read_lines
from tunesmith.data.row import Problems, Row
from tunesmith.data.strict_json import DECODER, MAX_DEPTH, check_value, json_type, parse_json
from tunesmith.errors import DataError
from tunesmith.notices import notify


def rows_of_lines(file: BinaryIO, source: str) -> Iterator[Row]:
    """Rows of an open file of JSON lines, ``source`` being its name in addresses; blank lines are passed over.

    Raises:
        DataError: up to 20 broken lines at once.
    """
    problems = Problems()
    blank = 0
    for number, line in enumerate(read_lines(file, source), start=1):
        try:
            row = parse_line(line, f"{source}:{number}", first=number == 1)
        except LayoutError:
            raise
        except DataError as problem:
            problems.add(problem)
        else:
            blank += row is None
            if row is not None and not problems.found:
                yield Row(row, source, number)
    problems.stop()
    if blank:
        notify(f"{source}: {blank} blank lines are passed over")


def parse_line(line: bytes, where: str, *, first: bool = False) -> dict[str, Any] | None:
    """The object on one line of a JSON lines file; None for a blank line.

    Args:
        line: the bytes, with or without the line's end.
        where: address for errors.
        first: whether a byte order mark is allowed.

    Raises:
        DataError: the line is not strict UTF-8, not strict JSON, or not an object.
    """
    text = decode(line, where, first=first)
    if not text.strip():
        return None
    try:
        value = parse_json(text)
    except DataError as problem:
        raise DataError(problem.what, where=where, remedy=problem.remedy) from None
    except RecursionError:
        raise DataError(f"nested deeper than {MAX_DEPTH}", where=where) from None
    except json.JSONDecodeError as error:
        raise _broken_line(error, line, text, where, first=first) from None
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})", where=where) from None
    return _as_object(value, where)


class LayoutError(DataError):
    """The lines of a file are not its rows, so that every further line would be wrong as well."""


def _broken_line(error: json.JSONDecodeError, line: bytes, text: str, where: str, *, first: bool) -> DataError:
    """What is wrong with a line that is no JSON, as far as the line itself tells."""
    column = min(error.pos, len(text.rstrip())) + 1  # what is missing is missing at the end of the text
    what = f"not valid JSON ({error.msg} at column {column})"
    unfinished = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
    if "\r" in text.rstrip("\r\n"):
        return LayoutError(
            "lines end with a carriage return alone", where=where, remedy="save the file with line feeds (LF or CRLF)"
        )
    if first and unfinished and line.endswith(b"\n"):
        return LayoutError(
            f"{what}: the row goes on in the next line",
            where=where,
            remedy="write every row on one line, or all of them as an array, [{...}, {...}], in a .json file",
        )
    if not unfinished:
        return DataError(what, where=where)
    whole = line.endswith(b"\n")
    remedy = "write every row on one line" if whole else "the last line has no end: the file looks truncated"
    return DataError(f"{what}: the line ends inside the row" if whole else what, where=where, remedy=remedy)


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    remedy = (
        "an array of rows belongs in a .json file" if isinstance(value, list) else "one object per line is expected"
    )
    raise DataError(f"a row must be an object, this is {json_type(value)}", where=where, remedy=remedy)


MAX_JSON_BYTES = 2**29
"""Size of a file that is one JSON value: reading it takes several times as much memory."""


def rows_of_json(file: BinaryIO, source: str) -> Iterator[Row]:
    """Rows of an array of objects; a file that begins with an object is read as JSON lines."""
    raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(
            f"is larger than {MAX_JSON_BYTES} bytes, and a .json file is read whole",
            where=source,
            remedy="write one row a line, in a .jsonl file, which may be of any size",
        )
    text = "".join(
        decode(line, f"{source}:{number}", first=number == 1)
        for number, line in enumerate(raw.splitlines(keepends=True), start=1)
    )
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "{":
        _refuse_keyed_object(text, source)
        yield from rows_of_lines(io.BytesIO(raw), source)
    elif text[start : start + 1] == "[":
        yield from _rows_of_array(text, start, source)
    elif text[start:]:
        raise DataError("is neither a JSON array nor JSON lines", where=f"{source}:1")


def _refuse_keyed_object(text: str, source: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if "\n" in text.strip() or (value and all(isinstance(item, dict) for item in value.values())):
        raise DataError(
            "is one JSON object, not an array of rows",
            where=source,
            remedy="write the rows as [{...}, {...}] or one object per line",
        )


def _rows_of_array(text: str, start: int, source: str) -> Iterator[Row]:
    position, line, counted = start + 1, 1, 0
    expected = "a row or ]"
    while True:
        position = _skip_space(text, position)
        line += text.count("\n", counted, position)
        counted = position
        where = f"{source}:{line}"
        if text[position : position + 1] == "]" and expected != "a row":
            break
        try:
            value, end = DECODER.raw_decode(text, position)
            check_value(value, text[position:end])
        except DataError as problem:
            raise DataError(problem.what, where=where, remedy=problem.remedy) from None
        except RecursionError:
            raise DataError(f"nested deeper than {MAX_DEPTH}", where=where) from None
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text.rstrip()) or not text.rstrip().endswith("]")
            raise DataError(
                f"not valid JSON ({error.msg} at column {error.colno})",
                where=f"{source}:{error.lineno}",
                remedy="the array has no end: the file looks truncated" if cut else None,
            ) from None
        except ValueError as error:
            raise DataError(f"not valid JSON ({error})", where=where) from None
        yield Row(_as_object(value, where), source, line)
        position = _skip_space(text, end)
        after = text[position : position + 1]
        if after == ",":
            position, expected = position + 1, "a row"
        elif after != "]":
            line += text.count("\n", counted, position)
            remedy = None if after else "the array has no end: the file looks truncated"
            raise DataError("not valid JSON (expected , or ] after a row)", where=f"{source}:{line}", remedy=remedy)
        else:
            expected = "a row or ]"
    if text[position + 1 :].strip():
        raise DataError("holds more after the end of the array", where=f"{source}:{line}")


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in ("\n", "\r", " ", "\t") and position < len(text):
        position += 1
    return position
