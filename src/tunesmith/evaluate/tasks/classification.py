"""Answers that are one label of a set: topics, sentiments, yes/no/maybe, multiple choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, declared_label, read_class, read_span, same_label
from tunesmith.evaluate.tasks.base import RowLike
from tunesmith.evaluate.tasks.classes import ClassTask

LABEL_COLUMNS = ("true_label", "gold_label", "label", "correct", "final_decision")
"""Columns that hold the right label, the most trustworthy first."""


class ClassificationTask(ClassTask):
    """The label that an output declares is the row's label.

    Args:
        labels: the labels there are; an answer that names none of them is unreadable.
    """

    name = "classification"
    labels: tuple[str, ...]

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    def read(self, text: str) -> Answer:
        return read_class(text, self.labels)

    def reference(self, row: RowLike, completion: str | None) -> str:
        stated = stated_label(row.values, completion)
        if stated is None:
            raise DataError(
                "the row has no label to compare answers with",
                where=row.where,
                remedy=f"give a short completion, or one of the columns {', '.join(LABEL_COLUMNS)}",
            )
        for label in self.labels:
            if same_label(label, stated):
                return label
        raise DataError(
            f"the row's label {stated!r} is none of {', '.join(self.labels)}",
            where=row.where,
            remedy="add it to labels, or correct the row",
        )


def stated_label(values: dict[str, Any], completion: str | None) -> str | None:
    """The label that a row states.

    It is the completion when that is one short line, or JSON with a ``label``; else one of ``LABEL_COLUMNS``; else what
    follows the completion's answer tag or phrase; else the only one of ``answers``.
    """
    label = declared_label(completion or "")
    if label is not None:
        return label
    held = next((values[name] for name in LABEL_COLUMNS if values.get(name) not in (None, "")), None)
    if held is not None:
        return str(held).strip()
    span = read_span(completion or "")
    if span.how in ("answer_tag", "answer_phrase"):
        return declared_label(span.value)
    answers = values.get("answers")
    if isinstance(answers, list) and len(answers) == 1:
        return declared_label(str(answers[0]))
    return None


def label_set(stated: Iterable[str]) -> list[str]:
    """Each label once, sorted; of spellings that differ in case alone, the first in that order."""
    found: list[str] = []
    for label in sorted(set(stated)):
        if not any(same_label(label, other) for other in found):
            found.append(label)
    return found
