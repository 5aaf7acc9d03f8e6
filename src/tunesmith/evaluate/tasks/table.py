"""The table of tasks, and which of them fits a kind of data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from tunesmith.errors import ConfigError
from tunesmith.evaluate.tasks.base import RowLike, Task
from tunesmith.evaluate.tasks.exact import ExactTask
from tunesmith.evaluate.tasks.nli import NliTask
from tunesmith.evaluate.tasks.rag import RagTask
from tunesmith.evaluate.tasks.reasoning import ReasoningTask

TASKS: dict[str, Callable[[], Task]] = {
    "nli": NliTask,
    "exact": ExactTask,
    "reasoning": ReasoningTask,
    "rag": RagTask,
}

_SAMPLE = 20
_FINAL_NUMBER = re.compile(r"####\s*[-+$\d.]|\\boxed\s*\{|\bthe answer is\W*[-+$\d]", re.IGNORECASE)


def choose_task(name: str, format_name: str, rows: Sequence[RowLike]) -> Task:
    """The task called ``name``, or with ``auto`` the one that fits the rows.

    Raises:
        ConfigError: there is no such task, or the name is ``none``.
    """
    if name == "auto":
        return detect_task(format_name, rows)
    if name not in TASKS:
        raise ConfigError(f"evaluation.task = {name} scores nothing", remedy=f"choose one of {', '.join(TASKS)}, auto")
    return TASKS[name]()


def detect_task(format_name: str, rows: Sequence[RowLike]) -> Task:
    """The task for rows of a format, by what most of the first rows contain where the format does not say it.

    ``nli`` and ``rag`` rows have their own tasks. Other rows that speak of a ``predicted_label`` are nli, those with a
    marked final number (``####``, ``\\boxed``, "the answer is 5") are reasoning, and the rest is exact.
    """
    if format_name in ("nli", "rag"):
        return TASKS[format_name]()
    texts = [json.dumps(row.values, ensure_ascii=False, default=str) for row in rows[:_SAMPLE]]
    if texts and sum("predicted_label" in text for text in texts) > len(texts) / 2:
        return NliTask()
    if texts and sum(_FINAL_NUMBER.search(text) is not None for text in texts) > len(texts) / 2:
        return ReasoningTask()
    return ExactTask()
