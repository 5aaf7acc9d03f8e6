"""A function of the user's: what it gets, what it may return, and how its errors are told."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.tasks import FunctionTask

FILE = '''"""A file of the user's."""
from dataclasses import dataclass


@dataclass
class Held:
    words: list[str]


def shares(output: str, row: dict, reference: str | None) -> dict[str, float]:
    held = Held(reference.split())
    return {"score": row["id"] == 7 and output == reference, "words": len(held.words) / 2}


def ratio(output, row, reference):
    return 1 / len(output)


def returns(output, row, reference):
    return eval(output)


def lonely(output):
    return True
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_figures_are_means_of_what_the_function_returns(file: Path, row: Callable[..., Row]) -> None:
    task = FunctionTask(f"{file}:shares")
    reference = task.reference(row(id=7, day=datetime.date(2026, 1, 2)), "two words")
    assert reference == {"source": "rows.jsonl:3", "answer": "two words", "row": {"id": 7, "day": "2026-01-02"}}
    scored = [task.score_answer(output, reference) for output in ("two words", "", "other")]
    assert [item.correct for item in scored] == [True, False, False]
    assert all(item.answer.readable for item in scored)
    assert task.figures(scored) == {"score": pytest.approx(1 / 3), "words": 1.0}
    assert task.main_metric == "score"


@pytest.mark.parametrize(("returned", "score"), [("True", 1.0), ("False", 0.0), ("0.25", 0.25), ("2", 2.0)])
def test_booleans_and_numbers(file: Path, row: Callable[..., Row], returned: str, score: float) -> None:
    task = FunctionTask(f"{file}:returns")
    scored = task.score_answer(returned, task.reference(row(), None))
    assert scored.scores == {"score": score}
    assert scored.correct is (score >= 1)


@pytest.mark.parametrize(
    "returned", ["None", "'yes'", "float('nan')", "{}", "{'words': 1}", "{'score': 1, 3: 1}", "{'score': 1, 'task': 1}"]
)
def test_anything_else_is_an_error_that_names_function_and_row(
    file: Path, row: Callable[..., Row], returned: str
) -> None:
    task = FunctionTask(f"{file}:returns")
    with pytest.raises(DataError, match=r"own\.py:19: the task function returns .* for the row rows\.jsonl:3"):
        task.score_answer(returned, task.reference(row(), None))


def test_an_error_names_file_line_and_row(file: Path, row: Callable[..., Row]) -> None:
    task = FunctionTask(f"{file}:ratio")
    with pytest.raises(DataError, match=r"own\.py:16: .* row rows\.jsonl:3: ZeroDivisionError"):
        task.score_answer("", task.reference(row(), None))


@pytest.mark.parametrize(
    ("text", "function", "match"),
    [
        (None, "score", r"missing\.py: no such Python file"),
        (FILE, "nothing", r"own\.py: has no function nothing"),
        (FILE, "Held", r"own\.py: has no function Held"),
        (FILE, "lonely", r"own\.py:23: lonely cannot be called with three arguments"),
        ("x = 1\ndef score(:\n", "score", r"own\.py:2: cannot be imported: SyntaxError"),
        ("x = 1\ny = x / 0\n", "score", r"own\.py:2: cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(file: Path, text: str | None, function: str, match: str) -> None:
    if text is not None:
        file.write_text(text, encoding="utf-8")
    path = file if text is not None else file.with_name("missing.py")
    with pytest.raises(ConfigError, match=match):
        FunctionTask(f"{path}:{function}")


def test_a_relative_path_names_its_line_too(
    file: Path, row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    task = FunctionTask("own.py:ratio")
    with pytest.raises(DataError, match=r"^own\.py:16: "):
        task.score_answer("", task.reference(row(), None))
