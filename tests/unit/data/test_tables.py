"""CSV and Parquet files."""

from __future__ import annotations

from pathlib import Path

import pytest

from row_files import refusal, write
from tunesmith.data.rows import read_rows


def test_csv_has_a_header_and_quoted_lines(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbfa,b\r\n1,"x\r\ny, ""z"""\r\n2,\r\n', "x.csv")
    found = read_rows(path)
    assert [row.values for row in found] == [{"a": "1", "b": 'x\r\ny, "z"'}, {"a": "2", "b": ""}]
    assert [row.line for row in found] == [2, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1\n", ":2: 1 fields where the header has 2"),
        (b"a,a\n1,2\n", ":1: the column 'a' occurs twice"),
        (b"a,\n1,2\n", "has no name"),
        (b'a,b\n1,"x"y\n', ":2: not valid CSV"),
        (b'a,b\n1,"x\n', "not valid CSV"),
        (b"a,b\n1,\xe9\n", ":2: byte 0xE9"),
        (b"a,b\n1,\x00\n", ":2: holds a NUL"),
        (b"a,b\n", "no examples"),
    ],
)
def test_broken_csv_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, content, "x.csv"))


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x", None], "b": [[1], []]}), path)
    found = read_rows(str(path))
    assert [(row.values, row.line) for row in found] == [({"a": "x", "b": [1]}, 1), ({"a": None, "b": []}, 2)]
    assert "not a valid Parquet file" in refusal(write(tmp_path, b"PAR1 no", "y.parquet"))
