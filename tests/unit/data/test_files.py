"""What a name of data stands for: files, folders, patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from row_files import GOOD, refusal, write
from tunesmith.data.rows import iter_rows, read_rows


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
