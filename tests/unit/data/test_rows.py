"""Rows that a setting names: addresses, refusals, real files."""

from __future__ import annotations

import json
from pathlib import Path

from row_files import GOOD, refusal, write
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows


def test_rows_know_their_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    found = read_rows(path)
    assert found == [Row({"text": "a"}, path, 1), Row({"text": "b"}, path, 2)]
    assert found[1].where == f"{path}:2"


def test_urls_archives_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    assert "cannot be a URL of the kind https" in refusal("https://example.org/train.jsonl")
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
