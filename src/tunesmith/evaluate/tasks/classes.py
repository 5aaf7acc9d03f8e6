"""What tasks with classes have in common: per-class figures, and which label was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.intervals import Statistic
from tunesmith.evaluate.metrics import Label, class_codes, classification_metrics, macro_f1_of_counts
from tunesmith.evaluate.tasks.base import ScoredAnswer, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ClassTask(Task):
    """A task whose references and answers are ``labels``."""

    main_metric = "accuracy"
    labels: Sequence[Label]

    def correct(self, answer: Answer, reference: Label) -> bool:
        return answer.readable and bool(answer.value == reference)

    def figures(self, scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
        return classification_metrics(*_columns(scored), self.labels)

    def statistics(self, scored: Sequence[ScoredAnswer]) -> dict[str, Statistic]:
        return super().statistics(scored) | {"macro_f1": _macro_f1(scored, self.labels)}

    def mistake(self, scored: ScoredAnswer) -> str:
        return f"{scored.reference} -> {scored.answer.value}"


def _columns(scored: Sequence[ScoredAnswer]) -> tuple[list[Label | None], list[Label]]:
    return [item.answer.value for item in scored], [item.reference for item in scored]


def _macro_f1(scored: Sequence[ScoredAnswer], labels: Sequence[Label]) -> Statistic:
    import numpy as np

    shape = (len(labels), len(labels) + 1)
    cells = np.ravel_multi_index(class_codes(*_columns(scored), labels), shape)

    def macro_f1(chosen: NDArray[np.int64]) -> float:
        return macro_f1_of_counts(np.bincount(chosen, minlength=shape[0] * shape[1]).reshape(shape))

    return Statistic(cells, macro_f1)
