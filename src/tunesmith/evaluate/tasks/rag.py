"""Questions answered from documents: exact match, token F1, short answers contained, ROUGE-L, citations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from tunesmith.data.rag import PASSAGES_COLUMN
from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, read_cited_span, without_citations
from tunesmith.evaluate.metrics import RougeL, exact_match, string_exact_match, token_f1
from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task

SHORT_ANSWER_COLUMNS = ("answer-short", "answer_short", "short_answers")
"""Columns with groups of short answers: every group is one fact, its members are ways to write it."""


class RagTask(Task):
    """Answers in words, and the passages that they cite.

    A reference is {"answers": texts that are right as a whole, "groups": groups of short answers} and, where the row
    says which passages support its answer, "supporting": their numbers in the prompt, from 1.

    Citations are judged by those numbers, once for the whole output: precision is the share of the passages cited that
    support the answer (0 when nothing is cited), recall the share of supporting passages that are cited; the figures
    are means over the rows that have supporting passages. ALCE (Gao et al. 2023) asks a model instead whether what is
    cited entails each sentence; no such model is run here.
    """

    name = "rag"
    main_metric = "f1"

    def read(self, text: str) -> Answer:
        return read_cited_span(text)

    def reference(self, row: RowLike, completion: str | None) -> dict[str, Any]:
        answers = [text for one in _texts(row.values.get("answers")) if (text := without_citations(one))]
        if not answers and completion:
            answers = _texts(self.read(completion).value)
        if not answers:
            raise DataError("the row has no answer to compare with", where=row.where)
        shorts = next((row.values[name] for name in SHORT_ANSWER_COLUMNS if row.values.get(name)), None)
        groups = [texts for group in _items(shorts) if (texts := _texts(group))]
        supporting = supporting_passages(row.values, completion)
        return {"answers": answers, "groups": groups or [answers]} | ({"supporting": supporting} if supporting else {})

    def correct(self, answer: Answer, reference: dict[str, Any]) -> bool:
        return answer.readable and exact_match(answer.value, reference["answers"])

    def scores(self, answer: Answer, reference: dict[str, Any], correct: bool) -> dict[str, float]:
        text = answer.value or ""
        scores = {
            "exact_match": float(correct),
            "f1": token_f1(text, reference["answers"]),
            "string_exact_match": string_exact_match(text, reference["groups"]),
            "rouge_l": self._rouge_l(text, reference["answers"]),
        }
        if "supporting" in reference:
            cited, supporting = set(answer.cited), set(reference["supporting"])
            scores["citation_precision"] = len(cited & supporting) / len(cited) if cited else 0.0
            scores["citation_recall"] = len(cited & supporting) / len(supporting)
        return scores

    def mistake(self, scored: ScoredAnswer) -> str:
        if string_exact_match(scored.answer.value, scored.reference["groups"]) == 1:
            return "right answer among other words"
        return "partly right" if token_f1(scored.answer.value, scored.reference["answers"]) else "another answer"

    @cached_property
    def _rouge_l(self) -> RougeL:
        return RougeL()


def supporting_passages(values: dict[str, Any], completion: str | None) -> list[int] | None:
    """Numbers of the passages in the prompt that support a row's answer; None where nothing says which they are.

    Prepared rows say it by ``passages`` and ``positive_passages``, as long as some passage of the prompt is no positive
    one. Otherwise the passages count that the row's own answer cites.
    """
    passages, positives = values.get(PASSAGES_COLUMN), values.get("positive_passages")
    if isinstance(passages, list) and isinstance(positives, list):
        known = _texts(positives)
        numbers = [number for number, passage in enumerate(passages, start=1) if str(passage).strip() in known]
        if len(numbers) < len(passages):
            return numbers or None
    return list(read_cited_span(completion or "").cited) or None


def _items(value: Any) -> Iterable[Any]:
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> list[str]:
    return [str(item).strip() for item in _items(value) if item is not None and str(item).strip()]
