"""``predict``: answers beside rows, in their order; interrupted, it goes on; wrong input is named before it costs."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.cli import predict as verb
from tunesmith.cli.main import main
from tunesmith.data.rows import read_rows
from tunesmith.evaluate import predict as predicting
from tunesmith.evaluate.journal import Journal

MODEL = "nano-mistral"
ROWS = [
    {"premise": "A dog runs, far away.", "hypothesis": 'An "animal" is outside.', "id": "1"},
    {"premise": "A man\nsleeps.", "hypothesis": "A man runs.", "id": "2"},
    {"premise": "It is.", "hypothesis": "No.", "id": "3"},
]
FEW = ["--max_new_tokens", "6"]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


def _read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_and_jsonl_hold_the_same_rows_in_order(tmp_path: Path, rows: str) -> None:
    table, lines = tmp_path / "out.csv", tmp_path / "out.jsonl"
    assert main(["predict", MODEL, rows, str(table), "--read", *FEW]) == 0
    assert main(["predict", MODEL, str(table), str(lines), "--column", "again", "--format", "nli", *FEW]) == 2
    plain = tmp_path / "in.csv"
    with plain.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    assert main(["predict", MODEL, str(plain), str(lines), *FEW]) == 0
    written = _read_csv(table.read_bytes().decode("utf-8"))
    again = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [{key: row[key] for key in ROWS[0]} for row in written] == ROWS
    assert [{key: row[key] for key in ROWS[0]} for row in again] == ROWS
    assert [row["output"] for row in written] == [row["output"] for row in again]
    assert all(row["output"] for row in again)
    assert [row["stopped"] for row in written] == [json.dumps(row["stopped"]) for row in again]
    assert table.read_bytes().count(b"\r\n") == len(ROWS) + 1
    assert set(written[0]) == {*ROWS[0], "output", "stopped", "read", "read_as"}


def test_an_engine_that_cannot_do_what_is_asked_is_refused(
    tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ["--generation_engine", "continuous", "--temperature", "0.5"]
    assert main(["predict", MODEL, rows, str(tmp_path / "out.jsonl"), *engine]) == 4
    assert "generation_engine continuous" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_interrupted_it_goes_on_and_never_leaves_half_an_output(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    alone = [*FEW, "--generation_batch_size", "1"]
    assert main(["predict", MODEL, rows, str(whole), *alone]) == 0
    add = Journal.add
    added: list[Any] = []

    def dies(self: Journal, answers: Any) -> None:
        add(self, answers)
        added.append(answers)
        if len(added) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", dies)
    assert main(["predict", MODEL, rows, str(output), *alone]) == 130
    unfinished = tmp_path / f"out.jsonl{verb.UNFINISHED}"
    assert not output.exists()
    assert len(unfinished.read_text().splitlines()) == 2
    notices.clear()
    assert main(["predict", MODEL, rows, str(output), *alone]) == 0
    assert len(added) == len(ROWS)
    assert output.read_text() == whole.read_text()
    assert not unfinished.exists()
    assert main(["predict", MODEL, rows, str(output), *alone]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["predict", MODEL, rows, str(output), "--overwrite", *alone]) == 0


def test_standard_input_and_output(
    rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(rows).read_bytes())))
    assert main(["predict", MODEL, "-", "-", *FEW]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["id"] for answer in answers] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ('{"premise": "a"}', 3, ":2:"),
        ('{"premise": "a", "hypothesis": null}', 3, ":2:"),
        ("{", 3, ":2:"),
        ('{"premise": "a", "hypothesis": "b", "output": "c"}', 2, "--column"),
    ],
)
def test_wrong_rows_are_named_before_the_model_is_loaded(
    tmp_path: Path,
    rows: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    row: str,
    code: int,
    says: str,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("tunesmith.model.load.load_base", load)
    path = Path(rows)
    path.write_text(path.read_text().splitlines()[0] + "\n" + row + "\n")
    assert main(["predict", MODEL, rows, str(tmp_path / "out.jsonl")]) == code
    assert says in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize(("name", "code"), [("out.txt", 2), ("nowhere/out.csv", 6), ("rows.jsonl", 2)])
def test_an_output_that_cannot_be_is_refused_at_once(tmp_path: Path, rows: str, name: str, code: int) -> None:
    assert main(["predict", "no/such/model", rows, str(tmp_path / name)]) == code


def test_csv_holds_every_column_of_rows_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    predicting.write_predictions(path, [{"a": 'x,"y"\n', "b": [1]}, {"a": None, "c": 2.5, "d": True}])
    assert path.read_bytes() == b'a,b,c,d\r\n"x,""y""\n",[1],,\r\n,,2.5,true\r\n'
    assert [row.values["a"] for row in read_rows(str(path))] == ['x,"y"\n', ""]
