"""Answers that have to be the row's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.tasks import ExactTask


def test_the_whole_output_is_the_answer(row: Callable[..., Row]) -> None:
    task = ExactTask()
    assert task.correct(task.read(" A dog. \n"), task.reference(row(), "dog"))
    assert not task.correct(task.read("a cat"), "dog")
    assert not task.correct(task.read(""), "dog")
    assert task.correct(task.read("[]"), "[]")
    assert not task.correct(task.read("()"), "[]")
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        task.reference(row(), "  ")


def test_kinds_of_mistakes() -> None:
    task = ExactTask()
    assert task.mistake(task.score_answer("The dog. It barks", "dog")) == "right beginning, then more"
    assert task.mistake(task.score_answer("dogs", "dog")) == "another text"
