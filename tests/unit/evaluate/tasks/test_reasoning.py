"""Worked solutions, on real ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.data.row import Row
from tunesmith.errors import DataError
from tunesmith.evaluate.tasks import ReasoningTask


def test_gsm8k_gold_answers_score_one_and_shuffled_ones_nearly_zero(real_data: Path, row: Callable[..., Row]) -> None:
    lines = (real_data / "reason_gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    assert len(solutions) == 7473
    task = ReasoningTask()
    references = [task.reference(row(), solution) for solution in solutions]
    # an independent reading of the convention: the text after the mark, commas removed
    plain = [float(solution.split("####")[1].strip().replace(",", "")) for solution in solutions]
    assert [float(reference) for reference in references] == plain

    def score(outputs: list[str]) -> float:
        scored = [task.score_answer(output, reference) for output, reference in zip(outputs, references, strict=True)]
        return float(task.figures(scored)["exact_match"])

    assert score(solutions) == 1.0
    assert score([f"So the answer is ${float(number):,.2f}." for number in plain]) == 1.0
    shuffled = random.Random(0).sample(solutions, len(solutions))
    assert score(shuffled) < 0.03


def test_reference_falls_back_to_columns_and_names_rows_without_number(row: Callable[..., Row]) -> None:
    task = ReasoningTask()
    assert task.reference(row(answer="#### 5"), None) == "5"
    with pytest.raises(DataError, match=r"rows\.jsonl:3.*no number"):
        task.reference(row(), "no number")


@pytest.mark.parametrize(
    ("output", "reference", "kind"),
    [
        ("#### 6", "5", "wrong number"),
        ("the answer is unknown", "5", "no number"),
        ("\\boxed{2x}", "\\boxed{x + x}", "wrong expression"),
    ],
)
def test_kinds_of_mistakes(row: Callable[..., Row], output: str, reference: str, kind: str) -> None:
    task = ReasoningTask()
    scored = task.score_answer(output, task.reference(row(), reference))
    assert not scored.correct
    assert task.mistake(scored) == kind
