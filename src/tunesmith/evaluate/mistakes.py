"""Kinds of mistakes among the answers of an evaluation, counted, with a few examples of each.

A row can show more than one kind: ``unreadable``, ``not stopped`` (cut at the longest answer, so that the end is
missing, be the answer right or not), and what the task calls a readable, wrong answer (``0 -> 1``, ``wrong number``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.evaluate.tasks import ScoredAnswer, Task

_EXAMPLES = 3
_TAIL = 300


def kinds_of_mistakes(task: Task, item: ScoredAnswer, *, stopped: bool) -> list[str]:
    """What is wrong with one answer; empty when nothing is."""
    kinds = [] if item.answer.readable else ["unreadable"]
    if item.answer.readable and not item.correct:
        kinds.append(task.mistake(item))
    return kinds if stopped else [*kinds, "not stopped"]


def collect_mistakes(kinds: Sequence[Sequence[str]], predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The kinds that occur, the commonest first: {kind: {count, examples}}.

    Args:
        kinds: those of each row.
        predictions: the rows' predictions; an example has source, reference, answer and the end of the output, and is
            one of the first rows that show its kind.
    """
    found: dict[str, dict[str, Any]] = {}
    for names, prediction in zip(kinds, predictions, strict=True):
        for name in names:
            entry = found.setdefault(name, {"count": 0, "examples": []})
            entry["count"] += 1
            if len(entry["examples"]) < _EXAMPLES:
                example = {key: prediction[key] for key in ("source", "reference", "answer")}
                entry["examples"].append(example | {"output_end": prediction["output"][-_TAIL:]})
    return dict(sorted(found.items(), key=lambda entry: -entry[1]["count"]))
