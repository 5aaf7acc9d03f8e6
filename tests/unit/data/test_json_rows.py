"""JSON lines and JSON arrays: every broken one is named with its line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from row_files import GOOD, refusal, write
from tunesmith import notices
from tunesmith.data import lines, opening
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataErrors

BROKEN_LINES = [
    (b"{'text': 1}", "not valid JSON"),
    (b'{"text": "caf\xe9"}', "byte 0xE9 at offset 13"),
    (b"[" * 100_000, "nested deeper than 100"),
    (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested deeper than 100"),
    (b'{"text": "\\ud800"}', "surrogate"),
    (b'{"text": "a\\u0000b"}', "NUL"),
    (b'{"text": "a\x00b"}', "not valid JSON"),
    (b'{"text": 1, "text": 2}', '"text" occurs twice'),
    (b'{"deep": {"a": 1, "a": 2}}', '"a" occurs twice'),
    (b'{"x": NaN}', "NaN is not JSON"),
    (b'{"x": -Infinity}', "-Infinity is not JSON"),
    (b"5", "must be an object, this is a number"),
    (b'["a"]', "array of rows belongs in a .json file"),
    (b'{"x": ' + b"9" * 10_000 + b"}", "a whole number of 10000 digits"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN_LINES, ids=[message for _, message in BROKEN_LINES])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, GOOD + line + b"\n" + GOOD)
    said = refusal(path)
    assert said.startswith(f"{path}:3: ")
    assert message in said


def test_an_escaped_surrogate_pair_and_a_written_out_escape_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"text": "\\ud83d\\ude00 \\\\u0000"}\n')
    assert read_rows(path)[0].values == {"text": "\U0001f600 \\u0000"}


def test_broken_lines_are_told_by_cause(tmp_path: Path) -> None:
    path = write(tmp_path, b"{}\n" + b"{oops\n" * 30)
    with pytest.raises(DataErrors) as caught:
        read_rows(path)
    listed = caught.value.lines()
    assert len(listed) == 1
    assert listed[0].startswith(f"{path}:2: ")
    assert listed[0].endswith("(and 29 more: 3, 4, 5 ...)")


def test_a_cut_last_line_looks_truncated(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, GOOD + b'{"text": "c'))
    assert ":3: not valid JSON" in said
    assert "looks truncated" in said


def test_mark_carriage_returns_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    notices.clear()
    assert [(row.values["text"], row.line) for row in read_rows(path)] == [("a", 1), ("b", 4)]
    assert any("2 blank lines" in text for text in notices.collected())


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_examples(tmp_path: Path, content: bytes) -> None:
    assert "no examples" in refusal(write(tmp_path, content))


def test_an_over_long_line_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    said = refusal(write(tmp_path, GOOD + b'{"text": "' + b"x" * 2000 + b'"}\n'))
    assert ":3: a line is longer than 1000 bytes" in said


def test_gzip_is_read_and_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, gzip.compress(GOOD), "train.jsonl.gz")
    assert [row.line for row in read_rows(path)] == [1, 2]
    monkeypatch.setattr(opening, "MAX_DECOMPRESSED_BYTES", 20)
    assert "more than 20 bytes when decompressed" in refusal(path)
    monkeypatch.undo()
    assert "not a whole gzip file" in refusal(write(tmp_path, gzip.compress(GOOD)[:-9], "cut.jsonl.gz"))
    assert "not a whole gzip file" in refusal(write(tmp_path, GOOD, "plain.jsonl.gz"))
    damaged = bytearray(gzip.compress(GOOD))
    damaged[10] ^= 0xFF
    assert "not a whole gzip file" in refusal(write(tmp_path, bytes(damaged), "damaged.jsonl.gz"))


def test_rows_of_an_array_know_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, b'[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n', "x.json")
    assert [(row.values["a"], row.line) for row in read_rows(path)] == [(1, 2), (2, 4), (3, 5)]


BROKEN_ARRAYS = [
    (b'[\n{"a": 1},\n{"a": oops}\n]', ":3: not valid JSON"),
    (b'[\n{"a": 1},\n{"a": 2', "looks truncated"),
    (b'[{"a": 1}', "looks truncated"),
    (b'[{"a": 1},\n]', "not valid JSON"),
    (b'[{"a": 1}\n{"a": 2}]', ":2: not valid JSON"),
    (b'[{"a": 1}] 5', "more after the end"),
    (b'[{"a": 1},\n7]', ":2: a row must be an object"),
    (b'[{"a": 1, "a": 2}]', "occurs twice"),
    (b'[{"a": NaN}]', "NaN"),
    (b"[" * 100_000, "nested deeper"),
    (b"[]", "no examples"),
    (b'{"id1": {"a": 1}, "id2": {"a": 2}}', "one JSON object, not an array"),
    (b'{\n "id1": {"a": 1}\n}', "one JSON object, not an array"),
    (b'"text"', "neither a JSON array nor JSON lines"),
    (b'[{"a": "\xe9"}]', "byte 0xE9"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN_ARRAYS)
def test_a_broken_array_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, content, "x.json"))


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    assert len(read_rows(write(tmp_path, GOOD, "x.json"))) == 2


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_row_over_several_lines_is_called_so(tmp_path: Path, name: str) -> None:
    said = refusal(write(tmp_path, b'{\n  "a": 1\n}\n{\n  "a": 2\n}', name))
    assert ":1: " in said
    assert "the row goes on in the next line" in said
    assert "truncated" not in said
    assert said.count("not valid JSON") == 1


def test_a_last_line_that_is_wrong_in_its_midst_is_not_truncated(tmp_path: Path) -> None:
    assert "truncated" not in refusal(write(tmp_path, GOOD + b'{"a": oops, "b": 1}'))


def test_a_line_that_is_too_long_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 20)
    assert ".parquet file" in refusal(write(tmp_path, b'{"text": "' + b"x" * 100 + b'"}\n'))


def test_a_later_row_over_several_lines_is_told_from_a_cut_file(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, GOOD + b'{\n "text": "c"\n}\n'))
    assert ":3: not valid JSON" in said
    assert "the line ends inside the row" in said
    assert "truncated" not in said


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_text_in_utf_16_is_called_one(tmp_path: Path, name: str, encoding: str) -> None:
    raw = '{"text": "a"}\n{"text": "b"}\n'.encode(encoding)
    path = write(tmp_path, gzip.compress(raw) if name.endswith(".gz") else raw, name)
    assert refusal(path) == f"{path}: is a text in UTF-16; save the file as UTF-8"
