"""CSV and Parquet files."""

from __future__ import annotations

from pathlib import Path

import pytest

from row_files import refusal, write
from tunesmith import notices
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


def test_tabs_and_row_numbers_of_pandas(tmp_path: Path, clean_notices: None) -> None:
    assert read_rows(write(tmp_path, b'a\tb\n1\t"x\ty"\n', "x.tsv"))[0].values == {"a": "1", "b": "x\ty"}
    found = read_rows(write(tmp_path, b",prompt,completion\n0,a,b\n", "x.csv"))
    assert found[0].values == {"Unnamed: 0": "0", "prompt": "a", "completion": "b"}
    assert any("row numbers written by pandas" in text for text in notices.collected())
    assert "a column has no name" in refusal(write(tmp_path, b",,a\n1,2,3\n", "y.csv"))


def test_lines_that_end_with_a_carriage_return_alone(tmp_path: Path) -> None:
    for name, content in (
        ("x.csv", b"a,b\r1,2\r"),
        ("x.txt", b"one\rtwo"),
        ("x.jsonl", b'{"a": 1}\r{"a": 2}\r'),
        ("y.json", b'{"a": 1}\r{"a": 2}'),
    ):
        said = refusal(write(tmp_path, content, name))
        assert "carriage return alone" in said
        assert "truncated" not in said


@pytest.mark.parametrize("kind", ["parquet", "stream.arrow", "file.arrow"])
def test_tables_are_read_as_strictly_as_json(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    def written(table: pyarrow.Table, name: str) -> str:
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(table, path)
            return str(path)
        new = pyarrow.ipc.new_stream if kind.startswith("stream") else pyarrow.ipc.new_file
        with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table)
        return str(path)

    fine = [{"a": "x", "b": [{"c": "y", "d": 1}]}, {"a": None, "b": []}]
    found = read_rows(written(pyarrow.Table.from_pylist(fine), "fine"))
    assert [(row.values, row.line) for row in found] == [(fine[0], 1), (fine[1], 2)]
    two = pyarrow.table({"a": ["right"], "b": ["wrong"]}).rename_columns(["a", "a"])
    assert "the column 'a' occurs twice" in refusal(written(two, "twice"))
    struct = pyarrow.StructArray.from_arrays([pyarrow.array(["r"]), pyarrow.array(["w"])], names=["k", "k"])
    said = refusal(written(pyarrow.table({"a": pyarrow.array([None], pyarrow.list_(struct.type))}), "deep"))
    assert "the key 'k' occurs twice" in said
    for number, values in enumerate((["ok", "a\0b"], [["x"], ["\0"]], [{"k": ["x"]}, {"k": ["\0"]}])):
        said = refusal(written(pyarrow.table({"a": values}), f"nul{number}"))
        assert ":2: holds a NUL character" in said
    raw = pyarrow.array([b"ok", b"caf\xe9"]).view(pyarrow.string())
    assert "not UTF-8" in refusal(written(pyarrow.table({"a": raw}), "latin"))


def test_a_broken_arrow_file_is_named(tmp_path: Path) -> None:
    assert "not a valid Arrow file" in refusal(write(tmp_path, b"ARROW1 no", "x.arrow"))
    assert "not a valid Arrow file" in refusal(write(tmp_path, b"something else", "y.arrow"))
