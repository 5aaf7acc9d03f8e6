"""A user's own Python function as a task: ``FILE.py:FUNCTION``.

The function is called as ``score(output, row, reference)`` for every row: the generated text, the row's columns as
plain data, and the row's own answer text (None when it has none). It returns True or False, a number (1 and more is
right), or numbers by name, of which ``score`` decides. This runs code from a file, so the setting comes from a command
line.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.tasks.base import RowLike, ScoredAnswer, Task

OwnFunction = Callable[[str, dict[str, Any], str | None], Any]
TAKEN = frozenset(
    """task main_metric num_examples confidence parse_failure_rate stopped_share mean_new_tokens read_as mistakes
    model""".split()
)
"""Names in metrics.json that every evaluation has."""


class FunctionTask(Task):
    """Outputs scored by a function of the user's.

    Its reference is {"source": the row's place, "answer": its own answer, "row": its columns}.

    Args:
        spelled: ``FILE.py:FUNCTION``.

    Raises:
        ConfigError: there is no such file or function, or importing it fails.
    """

    main_metric = "score"
    wrong = "score below 1"

    def __init__(self, spelled: str) -> None:
        file, _, function = spelled.rpartition(":")
        self.path = Path(file)
        self.name = f"{self.path.name}:{function}"  # metrics travel, and a folder of this machine says nothing there
        self.function = load_function(self.path, function)

    def read(self, text: str) -> Answer:
        return Answer(text, "task_function")

    def reference(self, row: RowLike, completion: str | None) -> dict[str, Any]:
        plain = json.loads(json.dumps(row.values, ensure_ascii=False, default=str))
        return {"source": row.where, "answer": completion, "row": plain}

    def correct(self, answer: Answer, reference: dict[str, Any]) -> bool:
        return self._scored(answer.value, reference)["score"] >= 1

    def score_answer(self, text: str, reference: dict[str, Any]) -> ScoredAnswer:
        scores = self._scored(text, reference)
        return ScoredAnswer(self.read(text), reference, scores["score"] >= 1, scores)

    def _scored(self, text: str, reference: dict[str, Any]) -> dict[str, float]:
        """What the function says of an output, as numbers by name.

        Raises:
            DataError: it raises an error, or returns something else; names its line and the row.
        """
        row = reference["source"]
        try:
            returned = self.function(text, dict(reference["row"]), reference["answer"])
        except Exception as error:
            raise DataError(
                f"the task function fails on the row {row}: {type(error).__name__}: {error}",
                where=_place(self.path, error),
                remedy="correct the function, or the row",
            ) from error
        scores = returned if isinstance(returned, dict) else {"score": returned}
        known = "score" in scores and not any(name in TAKEN for name in scores)
        if not known or not all(isinstance(name, str) and _is_number(value) for name, value in scores.items()):
            raise DataError(
                f"the task function returns {returned!r} for the row {row}",
                where=f"{self.path}:{inspect.unwrap(self.function).__code__.co_firstlineno}",
                remedy='return True or False, a finite number, or numbers by name with "score" among them',
            )
        return {name: float(value) for name, value in scores.items()}


def load_function(path: Path, name: str) -> OwnFunction:
    """Run a Python file and take a function from it.

    Raises:
        ConfigError: the file cannot be run, or has no such function of three arguments.
    """
    spec = importlib.util.spec_from_file_location(f"tunesmith_task_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError("no such Python file", where=str(path), remedy="write task_function as FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"cannot be imported: {type(error).__name__}: {error}",
            where=_place(path, error),
            remedy="correct the file, or choose one of tunesmith's tasks",
        ) from error
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        raise ConfigError(f"has no function {name}", where=str(path), remedy=f"define {name}(output, row, reference)")
    try:
        inspect.signature(function).bind("output", {}, None)
    except TypeError as error:
        raise ConfigError(
            f"{name} cannot be called with three arguments: {error}",
            where=f"{path}:{function.__code__.co_firstlineno}",
            remedy=f"define {name}(output, row, reference)",
        ) from error
    return function


def _place(path: Path, error: Exception) -> str:
    """The last line of the user's file that led to an error."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{path}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.absolute()]
    frames = frames or [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)
