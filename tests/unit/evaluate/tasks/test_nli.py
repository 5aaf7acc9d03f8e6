"""The right label of NLI rows, whatever column or answer says it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.tasks import NliTask


@pytest.mark.parametrize(
    ("values", "completion", "label"),
    [
        ({"label": "1"}, None, 1),
        ({"label": "entailment"}, None, 1),
        ({"label": "neutral"}, None, 0),
        ({"label": "contradiction"}, None, 0),
        ({"label": 0, "predicted_label": 1}, None, 0),
        ({"true_label": 1, "predicted_label": 0}, '{"predicted_label": 0}', 1),
        ({"true_label": False}, None, 0),
        ({"text": "..."}, '{"thought_process": "x", "predicted_label": 1}', 1),
    ],
)
def test_gold_label_of_a_row(
    row: Callable[..., Row], values: dict[str, object], completion: str | None, label: int
) -> None:
    assert NliTask().reference(row(**values), completion) == label


@pytest.mark.parametrize(("values", "completion"), [({"label": 2}, None), ({"label": "-"}, None), ({}, "no idea")])
def test_a_row_without_gold_label_is_named(
    row: Callable[..., Row], values: dict[str, object], completion: str | None
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        NliTask().reference(row(**values), completion)


def test_a_mistake_says_which_label_was_taken_for_which() -> None:
    task = NliTask()
    assert task.mistake(task.score_answer('{"predicted_label": 0}', 1)) == "1 -> 0"
