"""Rows of CSV and Parquet files, read strictly, each with its address."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.lines import MAX_LINE_BYTES, decode, read_lines
from tunesmith.data.row import Row
from tunesmith.errors import DataError


def csv_file(path: Path) -> Iterator[Row]:
    """Rows of a CSV file whose first line names the columns; every value is a text."""
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
    for number, line in enumerate(read_lines(file, source), start=1):
        text = decode(line, f"{source}:{number}", first=number == 1)
        if "\0" in text:
            raise DataError("holds a NUL character", where=f"{source}:{number}", remedy="remove it")
        yield text


def parquet_file(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file; the line of a row is its number, counted from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(without_struct_nulls(values), str(path), number)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a valid Parquet file ({error})", where=str(path)) from error


def without_struct_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table without the keys that its structs got from other rows.

    All structs of a column have the same keys there; those that a row did not have come back as null. The columns
    themselves keep their nulls.
    """
    return {name: _without_nulls(value) if isinstance(value, (dict, list)) else value for name, value in values.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
