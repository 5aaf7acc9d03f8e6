"""Natural language inference: the label in the JSON that ends a chain of thought."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, read_label
from tunesmith.evaluate.tasks.base import RowLike
from tunesmith.evaluate.tasks.classes import ClassTask

GOLD_COLUMNS = ("true_label", "label", "gold_label", "predicted_label")
"""Columns that hold the right label, the most trustworthy first: a thought row's prediction may be wrong."""

LABEL_WORDS = {"entailment": 1, "neutral": 0, "contradiction": 0, "not_entailment": 0, "no_entailment": 0}
"""Names of the labels in public NLI data, in two classes: the hypothesis follows (1), or does not (0)."""


class NliTask(ClassTask):
    """Labels 0 (no entailment) and 1 (entailment)."""

    name = "nli"
    labels = (0, 1)

    def read(self, text: str) -> Answer:
        return read_label(text, self.labels)

    def reference(self, row: RowLike, completion: str | None) -> int:
        for column in GOLD_COLUMNS:
            value = row.values.get(column)
            if value is not None:
                return self._label(value, column, row.where)
        answer = self.read(completion or "")
        if not answer.readable:
            raise DataError(
                "the row has no label to compare answers with",
                where=row.where,
                remedy=f"give one of the columns {', '.join(GOLD_COLUMNS)}, or a completion with predicted_label",
            )
        return int(answer.value)

    def _label(self, value: Any, column: str, where: str) -> int:
        text = str(value).strip().lower()
        label = LABEL_WORDS.get(text, text)
        for known in self.labels:
            if label in (known, str(known), f"{known}.0", str(bool(known)).lower()):
                return known
        raise DataError(
            f"{column} = {value!r} is not a label",
            where=where,
            remedy="labels are 0 (no entailment) and 1 (entailment)",
        )
