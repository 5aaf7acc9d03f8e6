"""The table of tasks, and which of them fits a kind of data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from tunesmith.config.schema import EvaluationSection
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.answers import read_calls, read_json
from tunesmith.evaluate.canonical import canonical_number
from tunesmith.evaluate.tasks.base import RowLike, Task
from tunesmith.evaluate.tasks.classification import LABEL_COLUMNS, ClassificationTask, label_set, stated_label
from tunesmith.evaluate.tasks.exact import ExactTask
from tunesmith.evaluate.tasks.json_answer import JsonTask
from tunesmith.evaluate.tasks.nli import NliTask
from tunesmith.evaluate.tasks.own_function import FunctionTask
from tunesmith.evaluate.tasks.rag import RagTask
from tunesmith.evaluate.tasks.reasoning import ReasoningTask
from tunesmith.evaluate.tasks.tool_call import ToolCallTask

Maker = Callable[[EvaluationSection, Sequence[RowLike], Sequence[str | None]], Task]


def _classification(
    evaluation: EvaluationSection, rows: Sequence[RowLike], completions: Sequence[str | None]
) -> ClassificationTask:
    if evaluation.labels is not None:
        return ClassificationTask(evaluation.labels)
    labels = label_set(label for label in _stated(rows, completions) if label is not None)
    if not labels:
        raise DataError(
            "no row states a label",
            where=rows[0].where if rows else None,
            remedy=f"give labels, short completions, or one of the columns {', '.join(LABEL_COLUMNS)}",
        )
    return ClassificationTask(labels)


TASKS: dict[str, Maker] = {
    "nli": lambda evaluation, rows, completions: NliTask(),
    "classification": _classification,
    "exact": lambda evaluation, rows, completions: ExactTask(),
    "json": lambda evaluation, rows, completions: JsonTask(evaluation.json_schema),
    "reasoning": lambda evaluation, rows, completions: ReasoningTask(),
    "rag": lambda evaluation, rows, completions: RagTask(),
    "tool_call": lambda evaluation, rows, completions: ToolCallTask(),
}
"""Every task by its name, made from the settings, the rows and their own answers."""

_SAMPLE = 20
_FINAL_NUMBER = re.compile(r"####\s*[-+$\d.]|\\boxed\s*\{|\bthe answer is\W*[-+$\d]", re.IGNORECASE)
_MAX_LABELS, _ROWS_PER_LABEL = 10, 5


def choose_task(
    evaluation: EvaluationSection, format_name: str, rows: Sequence[RowLike], completions: Sequence[str | None]
) -> Task:
    """The task that the settings name, or with ``auto`` the one that fits the rows.

    Args:
        evaluation: the settings.
        format_name: how the rows are read.
        rows: the rows to be scored.
        completions: their own answers as text, as far as they have one.

    Raises:
        ConfigError: the settings name no task, or a file of theirs is wrong.
        DataError: labels are to be taken from the rows, and they state none.
    """
    if evaluation.task_function is not None:
        return FunctionTask(evaluation.task_function)
    name = detect_task(format_name, rows, completions) if evaluation.task == "auto" else evaluation.task
    if name not in TASKS:
        raise ConfigError(f"evaluation.task = {name} scores nothing", remedy=f"choose one of {', '.join(TASKS)}, auto")
    return TASKS[name](evaluation, rows, completions)


def detect_task(format_name: str, rows: Sequence[RowLike], completions: Sequence[str | None]) -> str:
    """The name of the task that fits rows of a format, by what they contain where the format does not say it.

    The first that holds decides:

    - ``tool_call``: every row ends in a tool call;
    - ``nli``: rows of that format, or most of the first rows speak of a ``predicted_label``;
    - ``reasoning``: most of the first rows have a marked final number (``####``, ``\\boxed``, "the answer is 5");
    - ``classification``: the rows state at most 10 different labels, at least 5 rows for each of them on average, and
      these are words or stand in a column of labels;
    - ``rag``: rows of that format;
    - ``json``: every row's answer is a JSON object or array;
    - ``exact``: all others.
    """
    if completions and all(map(_is_call, completions)):
        return "tool_call"
    texts = [json.dumps(row.values, ensure_ascii=False, default=str) for row in rows[:_SAMPLE]]
    if format_name == "nli" or _most("predicted_label" in text for text in texts):
        return "nli"
    if format_name != "rag" and _most(_FINAL_NUMBER.search(text) is not None for text in texts):
        return "reasoning"
    if _have_classes(rows, _stated(rows, completions)):
        return "classification"
    if format_name == "rag":
        return "rag"
    return "json" if completions and all(_is_json(completion or "") for completion in completions) else "exact"


def _stated(rows: Sequence[RowLike], completions: Sequence[str | None]) -> list[str | None]:
    return [stated_label(row.values, completion) for row, completion in zip(rows, completions, strict=True)]


def _most(signs: Iterable[bool]) -> bool:
    found = list(signs)
    return sum(found) > len(found) / 2


def _have_classes(rows: Sequence[RowLike], stated: Sequence[str | None]) -> bool:
    labels = label_set(label for label in stated if label is not None)
    if None in stated or not 2 <= len(labels) <= _MAX_LABELS or len(stated) < _ROWS_PER_LABEL * len(labels):
        return False
    in_a_column = all(any(row.values.get(name) not in (None, "") for name in LABEL_COLUMNS) for row in rows)
    return in_a_column or not any(canonical_number(label) for label in labels)


def _is_call(text: str | None) -> bool:
    return text is not None and "<tool_call>" in text and bool(read_calls(text).value)


def _is_json(text: str) -> bool:
    answer = read_json(text)
    return answer.how == "json" and isinstance(answer.value, dict | list)
