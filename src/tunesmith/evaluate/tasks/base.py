"""What every task offers; no task stands here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.evaluate.answers import Answer


class RowLike(Protocol):
    """What a task needs of a data row."""

    @property
    def values(self) -> dict[str, Any]: ...

    @property
    def where(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer beside what it should have been, and whether it is right."""

    answer: Answer
    reference: Any
    correct: bool


class Task(Protocol):
    """How the answers of one kind of data are read and scored."""

    name: str

    def read(self, text: str) -> Answer:
        """What a generated text says."""

    def reference(self, row: RowLike, completion: str | None) -> Any:
        """What the answer to ``row`` should be, as plain data; ``completion`` is the row's own answer text.

        Raises:
            DataError: the row does not say what its answer should be.
        """

    def correct(self, answer: Answer, reference: Any) -> bool:
        """Whether the answer is right; an unreadable one never is."""

    def score(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """The task's own figures over all rows."""
