"""Worked solutions that end in a number (GSM8K and its kind), judged by the final answer."""

from __future__ import annotations

from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, read_number
from tunesmith.evaluate.canonical import canonical_number
from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task

GOLD_COLUMNS = ("answer", "final_answer", "target")
"""Columns read when a row brings no completion."""


class ReasoningTask(Task):
    """The final number or expression of an answer equals that of the row's own answer."""

    name = "reasoning"

    def read(self, text: str) -> Answer:
        return read_number(text)

    def reference(self, row: RowLike, completion: str | None) -> str:
        if completion is None:
            completion = next((str(row.values[name]) for name in GOLD_COLUMNS if row.values.get(name) is not None), "")
        answer = self.read(completion)
        if not answer.readable:
            raise DataError(
                "the row's answer ends in no number",
                where=row.where,
                remedy="choose task=exact if its answers are words",
            )
        return str(answer.value)

    def correct(self, answer: Answer, reference: str) -> bool:
        return answer.readable and bool(answer.value == reference)

    def mistake(self, scored: ScoredAnswer) -> str:
        if canonical_number(scored.reference) is None:
            return "wrong expression"
        return "no number" if canonical_number(scored.answer.value) is None else "wrong number"
