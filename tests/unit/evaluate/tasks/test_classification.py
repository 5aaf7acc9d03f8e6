"""Labels of a set: what rows state, what answers declare, on real multiple choice and yes/no/maybe questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.tasks import ClassificationTask
from tunesmith.evaluate.tasks.classification import label_set, stated_label


@pytest.mark.parametrize(
    ("values", "completion", "label"),
    [
        ({}, "Sports", "Sports"),
        ({}, " (B).\n", "B"),
        ({}, '{"reason": "x", "label": "not spam"}', "not spam"),
        ({"label": 2}, "Sports", "Sports"),
        ({"label": 2}, None, "2"),
        ({"correct": "C"}, "First this.\nThen that.\nThe answer is D.", "C"),
        ({}, "First this.\nThen that.\nThe answer is D.", "D"),
        ({}, "##Reason: because\n<ANSWER>: maybe", "maybe"),
        ({"answers": ["yes"]}, None, "yes"),
        ({"answers": ["yes", "no"]}, None, None),
        ({}, "A long story.\nIt has no label.", None),
        ({}, '{"label": "a", "label": "b"}', None),
        ({}, None, None),
    ],
)
def test_the_label_that_a_row_states(values: dict[str, object], completion: str | None, label: str | None) -> None:
    assert stated_label(values, completion) == label


def test_labels_differ_by_more_than_case() -> None:
    assert label_set(["no", "Yes", "yes", "maybe", "no"]) == ["Yes", "maybe", "no"]
    assert label_set(["a", "A"]) == ["A", "a"]


def test_references_are_labels_or_the_row_is_named(row: Callable[..., Row]) -> None:
    task = ClassificationTask(["Yes", "no"])
    assert task.reference(row(), "yes.") == "Yes"
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row's label 'maybe' is none of Yes, no"):
        task.reference(row(), "maybe")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row has no label"):
        task.reference(row(), None)


def test_aqua_rationales_name_the_choice_that_is_correct(real_data: Path, row: Callable[..., Row]) -> None:
    lines = (real_data / "reason_aqua" / "dev.json").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 254
    task = ClassificationTask(["A", "B", "C", "D", "E"])
    scored = [task.score_answer(item["rationale"], task.reference(row(**item), item["rationale"])) for item in rows]
    figures = task.figures(scored)
    readable = sum(item.answer.readable for item in scored)
    assert readable > 225  # people did not always say which choice they mean
    assert sum(item.correct for item in scored) == readable
    assert figures["accuracy"] == readable / 254
    assert [figures["per_class"][label]["support"] for label in "ABCDE"] == [
        sum(item["correct"] == label for item in rows) for label in "ABCDE"
    ]
    wrong = task.score_answer("The answer is (D).", "A")
    assert task.mistake(wrong) == "A -> D"
