"""What a name of data stands for: files, folders, patterns."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow
import pytest

from row_files import GOOD, refusal, write
from tunesmith import notices
from tunesmith.data.files import local_files
from tunesmith.data.rows import iter_rows, read_rows
from tunesmith.errors import DataError


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


@pytest.mark.parametrize(
    "name",
    ["evaluation", "heldout", "held-out", "hold_out", "holdout", "testing", "valid", "val", "dev", "test", "my_test"],
)
def test_names_of_held_out_files_are_known(tmp_path: Path, name: str, clean_notices: None) -> None:
    write(tmp_path, GOOD, "data.jsonl")
    write(tmp_path, GOOD, f"{name}.jsonl")
    assert {Path(row.source).name for row in read_rows(str(tmp_path), split="train")} == {"data.jsonl"}
    assert any(f"leaving {name}.jsonl" in text for text in notices.collected())


@pytest.mark.parametrize("name", ["latest", "contest", "developer", "value", "attest2"])
def test_names_that_only_hold_the_letters_are_ordinary(tmp_path: Path, name: str) -> None:
    write(tmp_path, GOOD, f"{name}.jsonl")
    write(tmp_path, GOOD, "more.jsonl")
    assert len(read_rows(str(tmp_path), split="train")) == 4


def test_folders_of_splits_and_of_a_hub_copy(tmp_path: Path) -> None:
    for place in ("train", "test", "notes"):
        (tmp_path / "data" / place).mkdir(parents=True)
        write(tmp_path / "data" / place, GOOD, "0.jsonl")
    for split, wanted in (("train", "train"), ("test", "test")):
        assert {Path(row.source).parent.name for row in read_rows(str(tmp_path), split=split)} == {wanted}


def test_a_pattern_may_not_take_held_out_files(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path, GOOD, name)
    pattern = str(tmp_path / "*.jsonl")
    for split, other in (("train", "test"), ("validation", "train")):
        with pytest.raises(DataError, match=f"named after the split {other}") as caught:
            read_rows(pattern, split=split)
        assert caught.value.exit_code == 3
        assert "list of names" in str(caught.value)
    assert len(read_rows(pattern)) == 4, "who predicts for all files may say so"
    assert len(read_rows(str(tmp_path / "t*in.jsonl"), split="train")) == 2
    assert len(read_rows(str(tmp_path / "test*.jsonl"), split="train")) == 2, "the pattern says it"
    assert len(read_rows([str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")], split="train")) == 4


def test_a_readme_beside_rows_is_not_trained(tmp_path: Path, clean_notices: None) -> None:
    write(tmp_path, GOOD, "rows.jsonl")
    write(tmp_path, b"Terms of use\n", "LICENSE.txt")
    assert len(read_rows(str(tmp_path), split="train")) == 2
    assert any("leaving LICENSE.txt" in text for text in notices.collected())


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"a": index, "b": {"c": "x"}} for index in range(7)])
    rows.select([4, 2]).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "several"))
    rows.save_to_disk(str(tmp_path / "shards"), num_shards=3)
    assert [row.values for row in read_rows(str(tmp_path / "one"))] == [
        {"a": 4, "b": {"c": "x"}},
        {"a": 2, "b": {"c": "x"}},
    ]
    assert [row.values["a"] for row in read_rows(str(tmp_path / "shards"))] == list(range(7))
    assert len(read_rows(str(tmp_path / "several"), split="train")) == 7
    assert len(read_rows(str(tmp_path / "several"), split="test")) == 1
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../shards/x.arrow"}]}')
    assert "in its own folder" in refusal(str(tmp_path / "one"))


@pytest.mark.parametrize("name", ["data\\train.jsonl", "C:\\data\\train.jsonl"])
def test_paths_of_windows_get_a_remedy(name: str) -> None:
    turned = "/mnt/c/data/train.jsonl" if name.startswith("C") else "data/train.jsonl"
    assert f"did you mean '{turned}'" in refusal(name)


def _compressed(kind: str, content: bytes) -> bytes:
    if kind == "zst":
        return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](content)


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": "b"}\n'),
        ("x.json", b'[{"text": "a"}, {"text": "b"}]'),
        ("x.csv", b"text\na\nb\n"),
        ("x.tsv", b"text\na\nb\n"),
        ("x.txt", b"a\n\nb\n"),
    ],
)
def test_compressed_texts(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    plain = [(row.values, row.line) for row in read_rows(write(tmp_path, content, name))]
    assert [values for values, _ in plain] == [{"text": "a"}, {"text": "b"}]
    packed = _compressed(kind, content)
    path = write(tmp_path, packed, f"{name}.{kind}")
    assert [(row.values, row.line) for row in read_rows(path)] == plain
    assert "is not a whole" in refusal(write(tmp_path, packed[:-3], f"cut-{name}.{kind}"))
    assert "is not a whole" in refusal(write(tmp_path, content, f"plain-{name}.{kind}"))


def test_a_compressed_table_is_no_kind_of_file(tmp_path: Path) -> None:
    assert ".parquet.gz is not a kind" in refusal(write(tmp_path, gzip.compress(b"PAR1"), "x.parquet.gz"))
    assert ".zip is not a kind" in refusal(write(tmp_path, b"PK", "x.zip"))
    assert "is not a kind" in refusal(write(tmp_path, b"", "x.gz"))


@pytest.mark.parametrize("name", ["testset", "dev-set", "evals", "val_data", "development", "tests", "TestSplit"])
def test_other_names_of_held_out_files(tmp_path: Path, name: str) -> None:
    for file in ("data", name):
        (tmp_path / f"{file}.jsonl").write_text('{"text": "a"}\n')
    assert local_files(str(tmp_path)) == [tmp_path / "data.jsonl"]
    with pytest.raises(DataError, match="named after the split"):
        local_files(str(tmp_path / "*.jsonl"))


@pytest.mark.parametrize("name", ["contest", "latest", "devices", "values", "dataset", "trainset", "evaluate_me"])
def test_names_that_only_look_so(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    assert local_files(str(tmp_path / "*.jsonl")) == [tmp_path / f"{name}.jsonl"]


def test_folders_that_stay_unread_are_said(tmp_path: Path) -> None:
    for folder in ("", "more/", ".git/", "pictures/"):
        (tmp_path / folder).mkdir(exist_ok=True)
        ending = "png" if folder == "pictures/" else "jsonl"
        (tmp_path / f"{folder}a.{ending}").write_text('{"text": "a"}\n')
    notices.clear()
    assert local_files(str(tmp_path)) == [tmp_path / "a.jsonl"]
    assert notices.collected() == [f"{tmp_path}: leaving the folders more: name them to read them, too"]
