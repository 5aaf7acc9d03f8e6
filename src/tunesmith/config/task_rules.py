"""Rules between settings of tasks: what generated answers are scored by."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config.json_schema import read_json_schema
from tunesmith.config.resolve import Resolved
from tunesmith.config.rule import Problem, Rules
from tunesmith.errors import ConfigError

RULES = Rules()


@RULES.rule
def labels_belong_to_classification(resolved: Resolved) -> Problem | None:
    evaluation = resolved.config.evaluation
    if evaluation.labels is None:
        return None
    if evaluation.task != "classification":
        return Problem(
            ("evaluation.labels", "evaluation.task"),
            f"labels belong to the task classification, and the task is {evaluation.task}",
            "set task classification, or leave out labels",
        )
    return None


@RULES.rule
def labels_differ(resolved: Resolved) -> Problem | None:
    labels = resolved.config.evaluation.labels
    if labels is not None and len({label.strip().casefold() for label in labels} - {""}) < max(2, len(labels)):
        return Problem(
            ("evaluation.labels",),
            f"labels {labels} are not two or more different texts",
            "name every label once; upper and lower case are the same label",
        )
    return None


@RULES.rule
def schema_belongs_to_json(resolved: Resolved) -> Problem | None:
    evaluation = resolved.config.evaluation
    if evaluation.json_schema is None:
        return None
    if evaluation.task != "json":
        return Problem(
            ("evaluation.json_schema", "evaluation.task"),
            f"json_schema belongs to the task json, and the task is {evaluation.task}",
            "set task json, or leave out json_schema",
        )
    return None


@RULES.rule
def schema_is_one(resolved: Resolved) -> Problem | None:
    path = resolved.config.evaluation.json_schema
    if path is None:
        return None
    try:
        read_json_schema(path)
    except ConfigError as error:
        return Problem(("evaluation.json_schema",), f"json_schema {error.where}: {error.what}", error.remedy or "")
    return None


@RULES.rule
def one_task(resolved: Resolved) -> Problem | None:
    evaluation = resolved.config.evaluation
    if evaluation.task_function is None or evaluation.task == "auto":
        return None
    return Problem(
        ("evaluation.task", "evaluation.task_function"),
        f"task {evaluation.task} and a task_function are both given",
        "leave one of them out",
    )


@RULES.rule
def task_function_is_a_function(resolved: Resolved) -> Problem | None:
    spelled = resolved.config.evaluation.task_function
    if spelled is None:
        return None
    file, _, function = spelled.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier() or not Path(file).is_file():
        return Problem(
            ("evaluation.task_function",),
            f"task_function {spelled!r} names no function of a Python file that exists",
            "write FILE.py:FUNCTION",
        )
    return None


@RULES.rule
def generated_answers_are_scored(resolved: Resolved) -> Problem | None:
    evaluation = resolved.config.evaluation
    if evaluation.generate and evaluation.task == "none":
        return Problem(
            ("evaluation.generate", "evaluation.task"),
            "answers are generated and task none scores nothing",
            "choose a task, or set generate false",
        )
    return None
