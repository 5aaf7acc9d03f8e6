"""What tasks with classes have in common: per-class figures, and which label was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.metrics import Label, class_codes, classification_metrics, macro_f1_of_counts
from tunesmith.evaluate.tasks.base import Judged, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.evaluate.intervals import Statistic


class ClassTask(Task):
    """A task whose references and answers are ``labels``."""

    main_metric = "accuracy"
    labels: Sequence[Label]

    def correct(self, answer: Answer, reference: Label) -> bool:
        return answer.readable and bool(answer.value == reference)

    def figures(self, judged: Sequence[Judged]) -> dict[str, Any]:
        return classification_metrics(*_columns(judged), self.labels)

    def statistics(self, judged: Sequence[Judged]) -> dict[str, Statistic]:
        return super().statistics(judged) | {"macro_f1": _macro_f1(judged, self.labels)}

    def mistake(self, judged: Judged) -> str:
        return f"{judged.reference} -> {judged.answer.value}"


def _columns(judged: Sequence[Judged]) -> tuple[list[Label | None], list[Label]]:
    return [item.answer.value for item in judged], [item.reference for item in judged]


def _macro_f1(judged: Sequence[Judged], labels: Sequence[Label]) -> Statistic:
    import numpy as np

    shape = (len(labels), len(labels) + 1)
    cells = np.ravel_multi_index(class_codes(*_columns(judged), labels), shape)

    def statistic(rows: NDArray[np.int64]) -> float:
        return macro_f1_of_counts(np.bincount(cells[rows], minlength=shape[0] * shape[1]).reshape(shape))

    return statistic
