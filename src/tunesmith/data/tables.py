"""Rows of CSV, TSV and plain text files, of Parquet and of Arrow, read strictly, each with its address."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.lines import MAX_LINE_BYTES, decode, read_lines
from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.notices import notify

if TYPE_CHECKING:
    import pyarrow

UNNAMED = "Unnamed: 0"
"""What pandas calls the column of row numbers that it wrote itself, without a name."""


def rows_of_csv(file: BinaryIO, source: str, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a CSV file whose first line names the columns; every value is a text."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(_text_lines(file, source), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = _header(fields, source, line)
            elif fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"{len(fields)} fields where the header has {len(header)}", where=f"{source}:{line}"
                    )
                yield Row(dict(zip(header, fields, strict=True)), source, line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", where=f"{source}:{line}") from None


def rows_of_tsv(file: BinaryIO, source: str) -> Iterator[Row]:
    """The same with tabs between the fields."""
    return rows_of_csv(file, source, "\t")


def rows_of_text(file: BinaryIO, source: str) -> Iterator[Row]:
    """Each line of a text file as the column ``text``; blank lines are passed over."""
    blank = 0
    for number, line in enumerate(_text_lines(file, source), start=1):
        text = line.rstrip("\r\n")
        blank += not text.strip()
        if text.strip():
            yield Row({"text": text}, source, number)
    if blank:
        notify(f"{source}: {blank} blank lines are passed over")


def _header(fields: list[str], source: str, line: int) -> list[str]:
    if fields[:1] == [""] and len(fields) > 1 and UNNAMED not in fields:
        notify(f"{source}: the first column has no name, as row numbers written by pandas; it is called {UNNAMED!r}")
        fields = [UNNAMED, *fields[1:]]
    repeated = sorted({name for name in fields if fields.count(name) > 1})
    if repeated or "" in fields:
        what = f"the column {repeated[0]!r} occurs twice" if repeated and repeated[0] else "a column has no name"
        raise DataError(what, where=f"{source}:{line}", remedy="the first line names the columns, each once")
    return fields


def _text_lines(file: BinaryIO, source: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(file, source), start=1):
        text = decode(line, f"{source}:{number}", first=number == 1)
        if "\0" in text:
            raise DataError("holds a NUL character", where=f"{source}:{number}", remedy="remove it")
        if "\r" in text.rstrip("\r\n") and not text.endswith("\n") and number == 1:
            raise DataError(
                "lines end with a carriage return alone",
                where=f"{source}:1",
                remedy="save the file with line feeds (LF or CRLF)",
            )
        yield text


def rows_of_parquet(file: BinaryIO, source: str) -> Iterator[Row]:
    """Rows of a Parquet file; the line of a row is its number, counted from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _refuse_repeated(table.schema_arrow, source)
            yield from _rows_of_batches(table.iter_batches(), source)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a valid Parquet file ({error})", where=source) from error


def rows_of_arrow(file: BinaryIO, source: str) -> Iterator[Row]:
    """Rows of an Arrow file, as ``datasets`` keeps them; the line of a row is its number, counted from 1."""
    import pyarrow
    import pyarrow.ipc

    try:
        begins = file.read(6)
        file.seek(0)
        if begins == b"ARROW1":
            with pyarrow.ipc.open_file(file) as table:
                _refuse_repeated(table.schema, source)
                batches = (table.get_batch(index) for index in range(table.num_record_batches))
                yield from _rows_of_batches(batches, source)
        else:
            with pyarrow.ipc.open_stream(file) as stream:
                _refuse_repeated(stream.schema, source)
                yield from _rows_of_batches(stream, source)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a valid Arrow file ({error})", where=source) from error


def _rows_of_batches(batches: Iterable[pyarrow.RecordBatch], source: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        suspect = any(_holds_nul(column) for column in batch.columns)
        try:
            found = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"rows {number + 1} to {number + batch.num_rows} hold bytes that are not UTF-8 ({error.reason})",
                where=source,
                remedy="write the file anew with texts in UTF-8",
            ) from None
        for values in found:
            number += 1
            if suspect:
                _refuse_nul(values, f"{source}:{number}")
            yield Row(without_struct_nulls(values), source, number)


def _refuse_repeated(schema: pyarrow.Schema, source: str) -> None:
    """A name that occurs twice among columns, or among the fields of a struct: reading would keep one of the two."""
    import pyarrow

    def look(fields: list[pyarrow.Field], what: str) -> None:
        names = [field.name for field in fields]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"the {what} {name!r} occurs twice", where=source, remedy="give each its own name")
        for field in fields:
            inner = [field.type.field(index) for index in range(field.type.num_fields)]
            look(inner, "key" if pyarrow.types.is_struct(field.type) else "field")

    look(list(schema), "column")


def _holds_nul(array: Any) -> bool:
    """Whether some text in ``array`` holds a NUL character, however deep."""
    import pyarrow.compute
    from pyarrow import types

    if types.is_string(array.type) or types.is_large_string(array.type):
        return bool(pyarrow.compute.any(pyarrow.compute.match_substring(array, "\0")).as_py())
    if types.is_dictionary(array.type):
        return _holds_nul(array.dictionary)
    if types.is_struct(array.type):
        return any(map(_holds_nul, array.flatten()))
    if types.is_map(array.type):
        return _holds_nul(array.keys) or _holds_nul(array.items)
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        return _holds_nul(array.flatten())
    return types.is_string_view(array.type) and any("\0" in text for text in array.to_pylist() if text)


def _refuse_nul(value: Any, where: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise DataError("holds a NUL character", where=where, remedy="remove it")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            _refuse_nul(item, where)


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
