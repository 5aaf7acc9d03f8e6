"""Rows from local files: JSON lines, JSON arrays, CSV and Parquet, read strictly, each row with its address.

Every file is read here by our own rules, so that a broken line is named instead of becoming a missing value. Hub data
sets are ``hub.py``'s; what a row means is ``formats.py``'s.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import DataError, DataErrors
from tunesmith.notices import notify

MAX_LINE_BYTES = 16 * 2**20
MAX_DECOMPRESSED_BYTES = 8 * 2**30
MAX_DEPTH = 100
MAX_PROBLEMS = 20

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the file holds it: its values, the file (or hub data set) and the line, counted from 1."""

    values: dict[str, Any]
    source: str
    line: int

    @property
    def where(self) -> str:
        """The row's address, ``source:line``."""
        return f"{self.source}:{self.line}"


class Problems:
    """Collects errors of one source and stops after ``MAX_PROBLEMS``."""

    def __init__(self) -> None:
        self.found: list[DataError] = []

    def add(self, problem: DataError) -> None:
        self.found.append(problem)
        if len(self.found) >= MAX_PROBLEMS:
            self.stop()

    def stop(self) -> None:
        """Raise what was collected, if anything was."""
        if self.found:
            raise self.found[0] if len(self.found) == 1 else DataErrors(self.found)


def read_rows(data: str | Sequence[str], *, subset: str | None = None, split: str = "train") -> list[Row]:
    """All rows of ``data``: see ``iter_rows``.

    Raises:
        DataError: also when there is not one row.
    """
    rows = list(iter_rows(data, subset=subset, split=split))
    if not rows:
        names = data if isinstance(data, str) else ", ".join(data)
        raise DataError("no examples", where=names, remedy="the data holds no rows")
    return rows


def iter_rows(data: str | Sequence[str], *, subset: str | None = None, split: str = "train") -> Iterator[Row]:
    """Rows of files, folders, glob patterns or hub data sets, one after the other, in flat memory for JSON lines.

    Args:
        data: one name or several; a local path is recognised before a hub name.
        subset: configuration of a hub data set.
        split: split of a hub data set or of a folder whose files are named after splits.

    Raises:
        DataError: something cannot be found or a row cannot be read; up to 20 broken rows of a file are listed at once.
    """
    for name in [data] if isinstance(data, str) else data:
        if "://" in name:
            raise DataError("data cannot be a URL", where=name, remedy="download the file and name it here")
        files = local_files(name, split)
        if files is None:
            from tunesmith.data.hub import hub_rows

            yield from hub_rows(name, subset=subset, split=split)
            continue
        for file in files:
            yield from file_rows(file)


def stream_rows(stream: BinaryIO, source: str = "standard input") -> Iterator[Row]:
    """Rows of JSON lines that come through an open stream.

    Raises:
        DataError: a line is no row, or there is none.
    """
    empty = True
    for row in _rows_of_lines(stream, source):
        empty = False
        yield row
    if empty:
        raise DataError("no examples", where=source, remedy="it holds no rows")


def local_files(name: str, split: str = "train") -> list[Path] | None:
    """The files that ``name`` stands for, sorted; None when it can only be a hub data set.

    Raises:
        DataError: the name looks like a path and nothing is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _files_of_folder(path, split)
    if path.exists():
        return [path]
    if any(character in name for character in "*?["):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise DataError("no file matches this pattern", where=name)
        return found
    if looks_like_path(name):
        raise DataError("no such file", where=name, remedy=_close_names(path))
    return None


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a local path and not as a hub data set."""
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or _suffix(Path(name)) in READERS:
        return True
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None


def file_rows(path: Path) -> Iterator[Row]:
    """Rows of one local file; the ending of its name decides how it is read.

    Raises:
        DataError: unknown kind of file, unreadable file, broken rows, or no row at all.
    """
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise DataError(
            f"{path.suffix or 'a name without an ending'} is not a kind of data file that can be read",
            where=str(path),
            remedy=f"use one of {', '.join(READERS)}",
        )
    empty = True
    try:
        for row in reader(path):
            empty = False
            yield row
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    if empty:
        raise DataError("no examples", where=str(path), remedy="the file holds no rows")


# JSON lines


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _rows_of_lines(file, str(path))


def _json_lines_gz(path: Path) -> Iterator[Row]:
    try:
        with gzip.open(path, "rb") as file:
            yield from _rows_of_lines(file, str(path), max_bytes=MAX_DECOMPRESSED_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"is not a whole gzip file ({error})", where=str(path)) from error


def _rows_of_lines(file: BinaryIO | gzip.GzipFile, source: str, max_bytes: int | None = None) -> Iterator[Row]:
    problems = Problems()
    size = blank = 0
    for number, line in enumerate(_lines(file, source), start=1):
        size += len(line)
        if max_bytes is not None and size > max_bytes:
            raise DataError(f"holds more than {max_bytes} bytes when decompressed", where=f"{source}:{number}")
        try:
            row = parse_line(line, f"{source}:{number}", first=number == 1)
        except DataError as problem:
            problems.add(problem)
        else:
            blank += row is None
            if row is not None and not problems.found:
                yield Row(row, source, number)
    problems.stop()
    if blank:
        notify(f"{source}: {blank} blank lines are passed over")


def _lines(file: BinaryIO | gzip.GzipFile, source: str) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"a line is longer than {MAX_LINE_BYTES} bytes", where=f"{source}:{number}")
        yield line


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
    except ValueError as error:
        cut = not line.endswith(b"\n")
        remedy = "the last line has no end: the file looks truncated" if cut else None
        raise DataError(f"not valid JSON ({error})", where=where, remedy=remedy) from None
    return _as_object(value, where)


def decode(line: bytes, where: str, *, first: bool = False) -> str:
    """Strict UTF-8.

    Raises:
        DataError: names the first byte that is not UTF-8.
    """
    if first and line.startswith(b"\xef\xbb\xbf"):
        line = line[3:]
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{line[error.start]:02X} at offset {error.start} of the line is not UTF-8",
            where=where,
            remedy="save the file as UTF-8",
        ) from None


def parse_json(text: str) -> Any:
    """Strict JSON: no duplicate keys, no NaN or Infinity, no NUL, no lone surrogate, at most 100 levels.

    Raises:
        DataError: one of these, without an address.
        ValueError, RecursionError: as ``json`` raises them.
    """
    value = _DECODER.decode(text)
    _check_value(value, text)
    return value


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    remedy = (
        "an array of rows belongs in a .json file" if isinstance(value, list) else "one object per line is expected"
    )
    raise DataError(f"a row must be an object, this is {json_type(value)}", where=where, remedy=remedy)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {json.dumps(repeated)} occurs twice in one object")
    return values


def _no_constant(name: str) -> Any:
    raise DataError(f"{name} is not JSON", remedy="write null or a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _check_value(value: Any, text: str) -> None:
    """Depth and characters, looked at only where the text can hold something wrong."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(f"nested deeper than {MAX_DEPTH}")
    if "\\u" in text:
        for string in _strings(value):
            if "\0" in string:
                raise DataError("holds a NUL character", remedy="remove it")
            if any("\ud800" <= character <= "\udfff" for character in string):
                raise DataError("holds half of a surrogate pair (\\ud800 to \\udfff)", remedy="remove or repair it")


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


# JSON arrays


def _json_file(path: Path) -> Iterator[Row]:
    """An array of objects; a file that begins with an object is read as JSON lines."""
    source = str(path)
    text = "".join(
        decode(line, f"{source}:{number}", first=number == 1)
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1)
    )
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "{":
        _refuse_keyed_object(text, source)
        yield from _json_lines(path)
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
            value, end = _DECODER.raw_decode(text, position)
            _check_value(value, text[position:end])
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


# CSV


def _csv_file(path: Path) -> Iterator[Row]:
    source = str(path)
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        reader = csv.reader(_text_lines(file, source), strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for fields in reader:
                if header is None:
                    header = _header(fields, f"{source}:{line}")
                elif fields:
                    if len(fields) != len(header):
                        raise DataError(
                            f"{len(fields)} fields where the header has {len(header)}", where=f"{source}:{line}"
                        )
                    yield Row(dict(zip(header, fields, strict=True)), source, line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"not valid CSV ({error})", where=f"{source}:{line}") from None


def _header(fields: list[str], where: str) -> list[str]:
    repeated = sorted({name for name in fields if fields.count(name) > 1})
    if repeated or "" in fields:
        what = f"the column {repeated[0]!r} occurs twice" if repeated else "a column has no name"
        raise DataError(what, where=where, remedy="the first line names the columns, each once")
    return fields


def _text_lines(file: BinaryIO, source: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file, source), start=1):
        text = decode(line, f"{source}:{number}", first=number == 1)
        if "\0" in text:
            raise DataError("holds a NUL character", where=f"{source}:{number}", remedy="remove it")
        yield text


# Parquet


def _parquet_file(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file; the line of a row is its number, counted from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, str(path), number)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a valid Parquet file ({error})", where=str(path)) from error


READERS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".jsonl.gz": _json_lines_gz,
    ".json": _json_file,
    ".csv": _csv_file,
    ".parquet": _parquet_file,
}


# Names


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    """The data files of a folder: those named after the split when files are named after splits, else all of them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _suffix(path) in READERS)
    files = [path for path in files if path.name not in ("dataset_info.json", "dataset_dict.json", "state.json")]
    if not files:
        raise DataError(
            "the folder holds no data files", where=str(folder), remedy=f"it needs files in {', '.join(READERS)}"
        )
    named = {path: _split_of(path) for path in files}
    if not any(named.values()):
        return files
    wanted = next((name for name, words in SPLIT_NAMES.items() if split in words), split)
    chosen = [path for path, name in named.items() if name == wanted]
    if not chosen:
        found = ", ".join(path.name for path in files)
        raise DataError(
            f"no file for the split {split!r} among {found}", where=str(folder), remedy="name the file itself"
        )
    notify(f"{folder}: taking {', '.join(path.name for path in chosen)} for the split {split}")
    return chosen


def _split_of(path: Path) -> str | None:
    word = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
    return next((name for name, words in SPLIT_NAMES.items() if word in words), None)


def _close_names(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else None
