"""Answers that call tools: the same functions with the same arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.answers import Answer, read_calls, read_json
from tunesmith.evaluate.call_spellings import TEXTS
from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task
from tunesmith.evaluate.tasks.json_answer import same_json

_GIVEN = re.compile(r"(?:(?:\A|\n)<tool_call>\n[^\n<]*\n</tool_call>)+\Z")
"""Calls as a row's answer ends with them (``Conversation.answer_with_calls``), whatever its words look like."""


class ToolCallTask(Task):
    """An output makes the calls with which the row ends, in any order: names and arguments are equal."""

    name = "tool_call"
    reads_control_tokens = True

    def read(self, text: str) -> Answer:
        return read_calls(text)

    def reference(self, row: RowLike, completion: str | None) -> list[dict[str, Any]]:
        given = _GIVEN.search(completion or "")
        answer = self.read(given.group() if given else completion or "")
        if not answer.readable or not answer.value:
            raise DataError(
                "the row does not end in a tool call", where=row.where, remedy="remove it, or judge by another task"
            )
        return list(answer.value)

    def check_own_answer(self, row: RowLike, text: str, reference: Any) -> None:
        if not self.correct(self.read(text), reference):
            raise DataError(
                f"the row's own call, as its template writes it, cannot be read again: {text[:120]!r}",
                where=row.where,
                remedy="use a template whose calls are read (evaluate/answers.py lists them), or another task",
            )

    def correct(self, answer: Answer, reference: Any) -> bool:
        return answer.readable and len(answer.value) == len(reference) == _found(answer, reference)

    def scores(self, answer: Answer, reference: Any, correct: bool) -> dict[str, float]:
        calls = answer.value or []
        return super().scores(answer, reference, correct) | {
            "names_match": float(answer.readable and _names(calls) == _names(reference)),
            "calls_found": _found(answer, reference) / len(reference),
        }

    def mistake(self, scored: ScoredAnswer) -> str:
        calls, reference = scored.answer.value, scored.reference
        if not calls:
            return "no call"
        if len(calls) != len(reference):
            return "too few calls" if len(calls) < len(reference) else "too many calls"
        return "wrong arguments" if _names(calls) == _names(reference) else "wrong function"


def _names(calls: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(call["name"] for call in calls)


def _found(answer: Answer, reference: Sequence[dict[str, Any]]) -> int:
    """How many of the reference's calls the answer makes; each of its calls counts once."""
    left = list(answer.value or [])
    for wanted in reference:
        at = next((place for place, call in enumerate(left) if _same(call, wanted, answer.how)), None)
        if at is not None:
            del left[at]
    return len(answer.value or []) - len(left)


def _same(call: dict[str, Any], wanted: dict[str, Any], how: str) -> bool:
    given, expected = call["arguments"], wanted["arguments"]
    return (
        call["name"] == wanted["name"]
        and given.keys() == expected.keys()
        and all(_same_argument(given[key], expected[key], how) for key in expected)
    )


def _same_argument(given: Any, expected: Any, how: str) -> bool:
    """Whether two arguments are equal; a bare text, whose type is not known, is what JSON reads in it, too."""
    if how == TEXTS and not isinstance(expected, str):
        said = read_json(given)
        return said.how == "json" and same_json(said.value, expected)
    return same_json(given, expected)
