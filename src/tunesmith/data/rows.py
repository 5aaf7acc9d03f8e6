"""All rows that a setting names: local files first, then hub data sets. Every row keeps its address.

Files are found in ``files.py`` and read in ``json_rows.py`` and ``tables.py`` by our own rules, so that a broken line
is named instead of becoming a missing value. What a row means is ``formats.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from tunesmith.data import remote
from tunesmith.data.files import file_rows, local_files, remote_files
from tunesmith.data.hub import hub_rows
from tunesmith.data.json_rows import rows_of_lines
from tunesmith.data.row import Row
from tunesmith.errors import DataError


def read_rows(data: str | Sequence[str], *, subset: str | None = None, split: str | None = None) -> list[Row]:
    """All rows of ``data``: see ``iter_rows``.

    Raises:
        DataError: also when there is not one row.
    """
    rows = list(iter_rows(data, subset=subset, split=split))
    if not rows:
        names = data if isinstance(data, str) else ", ".join(data)
        raise DataError("no examples", where=names, remedy="the data holds no rows")
    return rows


def iter_rows(data: str | Sequence[str], *, subset: str | None = None, split: str | None = None) -> Iterator[Row]:
    """Rows of files, folders, glob patterns, URLs or hub data sets, one after the other, in flat memory for JSON lines.

    Args:
        data: one name or several; a local path is recognised before a hub name.
        subset: configuration of a hub data set.
        split: split of a hub data set or of a folder whose files are named after splits, which a pattern may not leave
            either; unset, ``train`` of those, and whatever a pattern takes.

    Raises:
        DataError: something cannot be found or a row cannot be read; up to 20 broken rows of a file are listed at once.
    """
    for name in [data] if isinstance(data, str) else data:
        files = remote_files(name, split) if remote.is_url(name) else local_files(name, split)
        if files is None:
            yield from hub_rows(name, subset=subset, split=split or "train")
            continue
        for file in files:
            yield from file_rows(str(file))


def stream_rows(stream: BinaryIO, source: str = "standard input") -> Iterator[Row]:
    """Rows of JSON lines that come through an open stream.

    Raises:
        DataError: a line is no row, or there is none.
    """
    empty = True
    for row in rows_of_lines(stream, source):
        empty = False
        yield row
    if empty:
        raise DataError("no examples", where=source, remedy="it holds no rows")
