"""Questions answered from documents: exact match, token F1, short answers contained, ROUGE-L."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, read_span
from tunesmith.evaluate.metrics import RougeL, exact_match, mean, string_exact_match, token_f1
from tunesmith.evaluate.tasks.base import Judged, RowLike

SHORT_ANSWER_COLUMNS = ("answer-short", "answer_short", "short_answers")
"""Columns with groups of short answers: every group is one fact, its members are ways to write it."""


class RagTask:
    """A reference is {"answers": texts that are right as a whole, "groups": groups of short answers}."""

    name = "rag"

    def read(self, text: str) -> Answer:
        return read_span(text)

    def reference(self, row: RowLike, completion: str | None) -> dict[str, Any]:
        answers = _texts(row.values.get("answers"))
        if not answers and completion:
            answers = _texts(self.read(completion).value)
        if not answers:
            raise DataError("the row has no answer to compare with", where=row.where)
        shorts = next((row.values[name] for name in SHORT_ANSWER_COLUMNS if row.values.get(name)), None)
        groups = [texts for group in _items(shorts) if (texts := _texts(group))]
        return {"answers": answers, "groups": groups or [answers]}

    def correct(self, answer: Answer, reference: dict[str, Any]) -> bool:
        return answer.readable and exact_match(answer.value, reference["answers"])

    def score(self, judged: Sequence[Judged]) -> dict[str, Any]:
        rouge_l = RougeL()
        pairs = [(item.answer.value or "", item.reference) for item in judged]
        return {
            "exact_match": mean([float(item.correct) for item in judged]),
            "f1": mean([token_f1(text, reference["answers"]) for text, reference in pairs]),
            "string_exact_match": mean([string_exact_match(text, reference["groups"]) for text, reference in pairs]),
            "rouge_l": mean([rouge_l(text, reference["answers"]) for text, reference in pairs]),
        }


def _items(value: Any) -> Iterable[Any]:
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> list[str]:
    return [str(item).strip() for item in _items(value) if item is not None and str(item).strip()]
