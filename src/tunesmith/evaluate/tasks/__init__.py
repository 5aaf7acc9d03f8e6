"""Tasks: how the answers of one kind of data are read and scored, one small file each.

A task sees text, rows and references; it knows no model and writes no file.
"""

from __future__ import annotations

from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task
from tunesmith.evaluate.tasks.classification import ClassificationTask
from tunesmith.evaluate.tasks.exact import ExactTask
from tunesmith.evaluate.tasks.json_answer import JsonTask
from tunesmith.evaluate.tasks.nli import NliTask
from tunesmith.evaluate.tasks.own_function import FunctionTask
from tunesmith.evaluate.tasks.rag import RagTask
from tunesmith.evaluate.tasks.reasoning import ReasoningTask
from tunesmith.evaluate.tasks.table import TASKS, choose_task, detect_task
from tunesmith.evaluate.tasks.tool_call import ToolCallTask

__all__ = [
    "TASKS",
    "ClassificationTask",
    "ExactTask",
    "FunctionTask",
    "JsonTask",
    "NliTask",
    "RagTask",
    "ReasoningTask",
    "RowLike",
    "ScoredAnswer",
    "Task",
    "ToolCallTask",
    "choose_task",
    "detect_task",
]
