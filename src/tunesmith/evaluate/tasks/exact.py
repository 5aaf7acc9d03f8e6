"""Short answers that have to be the row's own answer, up to case, punctuation, articles and white space."""

from __future__ import annotations

from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, read_text
from tunesmith.evaluate.metrics import exact_match, normalize_text
from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task


class ExactTask(Task):
    """The whole output equals the completion."""

    name = "exact"

    def read(self, text: str) -> Answer:
        return read_text(text)

    def reference(self, row: RowLike, completion: str | None) -> str:
        if not (completion or "").strip():
            raise DataError("the row has no answer to compare with", where=row.where)
        return str(completion).strip()

    def correct(self, answer: Answer, reference: str) -> bool:
        if not answer.readable:
            return False
        if not normalize_text(reference):
            # An answer of nothing but punctuation and articles would equal every other such answer.
            return bool(answer.value == reference)
        return exact_match(answer.value, [reference])

    def mistake(self, scored: ScoredAnswer) -> str:
        answer, reference = normalize_text(scored.answer.value), normalize_text(scored.reference)
        return "right beginning, then more" if reference and answer.startswith(f"{reference} ") else "another text"
