from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.data import json_rows, lines
from tunesmith.data.row import Row
from tunesmith.data.rows import iter_rows, read_rows
from tunesmith.errors import DataError, DataErrors

GOOD = b'{"text": "a"}\n{"text": "b"}\n'


def write(folder: Path, content: bytes, name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def refusal(data: str | list[str]) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(data)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_rows_know_their_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    found = read_rows(path)
    assert found == [Row({"text": "a"}, path, 1), Row({"text": "b"}, path, 2)]
    assert found[1].where == f"{path}:2"


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
    (b'{"x": ' + b"9" * 10_000 + b"}", "not valid JSON"),
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


def test_twenty_broken_lines_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, b"{}\n" + b"{oops\n" * 30)
    with pytest.raises(DataErrors) as caught:
        read_rows(path)
    listed = caught.value.lines()
    assert len(listed) == 20
    assert [line.split(": ")[0] for line in listed] == [f"{path}:{number}" for number in range(2, 22)]


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
    monkeypatch.setattr(json_rows, "MAX_DECOMPRESSED_BYTES", 20)
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


def test_globs_lists_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write(tmp_path, GOOD, "a.jsonl"), write(tmp_path, GOOD, "b.jsonl")
    assert [row.source for row in read_rows(str(tmp_path / "*.jsonl"))] == [first, first, second, second]
    assert [row.source for row in read_rows([second, first])] == [second, second, first, first]
    assert [row.source for row in read_rows(str(tmp_path))] == [first, first, second, second]
    assert "no file matches" in refusal(str(tmp_path / "*.csv"))


def test_a_folder_of_splits_gives_the_split_only(tmp_path: Path) -> None:
    for name in ("train.jsonl", "dev.jsonl", "test-1.jsonl"):
        write(tmp_path, GOOD, name)
    assert {Path(row.source).name for row in iter_rows(str(tmp_path))} == {"train.jsonl"}
    assert {Path(row.source).name for row in iter_rows(str(tmp_path), split="validation")} == {"dev.jsonl"}
    (tmp_path / "train.jsonl").unlink()
    assert "no file for the split 'train'" in refusal(str(tmp_path))


def test_a_missing_file_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "train_ft.jsonl")
    said = refusal(str(tmp_path / "train_fd.jsonl"))
    assert "no such file" in said
    assert "train_ft.jsonl'?" in said
    assert "does not exist" in refusal(str(tmp_path / "nowhere" / "x.jsonl"))
    monkeypatch.chdir(tmp_path)
    for name in ("missing.jsonl", "./missing", "~/missing-folder-of-nobody", "a/b/c", "has space", "data/x.csv"):
        assert "no such file" in refusal(name), name


def test_urls_archives_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    assert "cannot be a URL" in refusal("https://example.org/train.jsonl")
    assert "not a kind of data file" in refusal(write(tmp_path, b"PK", "x.zip"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no data files" in refusal(str(empty))


def test_a_hub_name_offline_is_refused_at_once() -> None:
    said = refusal("nobody/no-such-data")
    assert "nobody/no-such-data" in said
    assert "HF_HUB_OFFLINE" in said


def test_real_files_are_read_whole(real_data: Path) -> None:
    assert len(read_rows(str(real_data / "reason_gsm8k" / "train.jsonl"))) == 7473
    assert len(read_rows(str(real_data / "nli_esnli" / "esnli_dev.csv"))) == 9842
    assert len(read_rows(str(real_data / "reason_aqua" / "dev.json"))) == 254
    asqa = json.loads((real_data / "rag_alce_asqa_prompts" / "asqa_default.json").read_text())
    assert isinstance(asqa, dict)
    assert "not an array of rows" in refusal(str(real_data / "rag_pubmedqa" / "pqal_train500.json"))
