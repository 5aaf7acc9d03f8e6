"""What every task offers; no task stands here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.intervals import Statistic, mean_of
from tunesmith.evaluate.metrics import mean


class RowLike(Protocol):
    """What a task needs of a data row."""

    @property
    def values(self) -> dict[str, Any]: ...

    @property
    def where(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer beside what it should have been, whether it is right, and the row's own figures."""

    answer: Answer
    reference: Any
    correct: bool
    scores: dict[str, float]


class Task(ABC):
    """How the answers of one kind of data are read and scored.

    A task says how text is read, what a row's answer should be and when an answer is right. Where that is all, the
    share of right answers (``main_metric``) is its figure.
    """

    name: str
    main_metric: str = "exact_match"
    """The figure that models are compared by; a mean over rows, and greater is better."""
    wrong: str = "wrong answer"
    """The kind of mistake that a readable, wrong answer is."""

    reads_control_tokens: bool = False
    """Whether outputs are read, and shown, with the control tokens in them."""

    @abstractmethod
    def read(self, text: str) -> Answer:
        """What a generated text says."""

    @abstractmethod
    def reference(self, row: RowLike, completion: str | None) -> Any:
        """What the answer to ``row`` should be, as plain data; ``completion`` is the row's own answer text.

        Raises:
            DataError: the row does not say what its answer should be.
        """

    @abstractmethod
    def correct(self, answer: Answer, reference: Any) -> bool:
        """Whether the answer is right; an unreadable one never is."""

    def check_own_answer(self, row: RowLike, text: str, reference: Any) -> None:  # noqa: B027 (most tasks need none)
        """Stop where the row's own answer, as its template writes it, would not be right. Asked only where control
        tokens are read: what a model learnt to write has to be readable.

        Raises:
            DataError: it would not.
        """

    def score_answer(self, text: str, reference: Any) -> ScoredAnswer:
        """A generated text read, compared and scored."""
        answer = self.read(text)
        correct = self.correct(answer, reference)
        return ScoredAnswer(answer, reference, correct, self.scores(answer, reference, correct))

    def scores(self, answer: Answer, reference: Any, correct: bool) -> dict[str, float]:
        """The figures of one row, whose means over all rows that have them are the task's."""
        return {self.main_metric: float(correct)}

    def figures(self, scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
        """The task's own figures over all rows (at least one)."""
        return {
            name: mean([value for value in values if value is not None]) for name, values in columns(scored).items()
        }

    def statistics(self, scored: Sequence[ScoredAnswer]) -> dict[str, Statistic]:
        """The figures that get a confidence interval, each with its rows' values."""
        return {name: mean_of(values) for name, values in columns(scored).items()}

    def mistake(self, scored: ScoredAnswer) -> str:
        """The kind of mistake that a readable, wrong answer is."""
        return self.wrong


def columns(scored: Sequence[ScoredAnswer]) -> dict[str, list[float | None]]:
    """The rows' figures by name, one value a row; None where a row does not have that figure."""
    names = dict.fromkeys(name for item in scored for name in item.scores)
    return {name: [item.scores.get(name) for item in scored] for name in names}
