"""Lines of a file as strict UTF-8, none of them longer than memory can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from tunesmith.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
MAX_BLANK_LINES = 1_000_000
"""Blank lines in a row; more are no slip but a file made to take time."""


def read_lines(file: BinaryIO, source: str) -> Iterator[bytes]:
    """The lines of ``file`` as they stand, with their ends.

    Raises:
        DataError: a line is longer than ``MAX_LINE_BYTES``, or more than ``MAX_BLANK_LINES`` in a row are blank.
    """
    number = blank = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK_LINES:
            raise DataError(
                f"more than {MAX_BLANK_LINES} blank lines in a row",
                where=f"{source}:{number}",
                remedy="remove the blank lines",
            )
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"a line is longer than {MAX_LINE_BYTES} bytes",
                where=f"{source}:{number}",
                remedy="end every row with a line feed, or keep such rows in a .parquet file, which has no such limit",
            )
        yield line


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
