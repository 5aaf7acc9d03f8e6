"""What a checkpoint's files of states hold: looked at before anything uses it, and one error where it cannot be used.

The manifest says that the files are those that were written, not that a trainer of ours wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import StorageError, TunesmithError
from tunesmith.report.folder import read_json
from tunesmith.train.checkpoint import step_of

PROGRESS = "progress.json"
"""File of a checkpoint with the losses since the last logged line."""
STATE = "trainer_state.json"
_REMEDY = "continue from another checkpoint, or train anew"


def check_states(folder: Path) -> None:
    """Refuse a checkpoint whose JSON files of states are none, or are another step's.

    Raises:
        StorageError: with the file and what of it cannot be used.
    """
    _check(folder / STATE, _STATE)
    _check(folder / PROGRESS, _PROGRESS)
    step = read_json(folder / STATE)["global_step"]
    if step_of(folder) not in (0, step):
        raise StorageError(f"is the state of step {step}", where=str(folder / STATE), remedy=_REMEDY)


@contextmanager
def usable(folder: Path | str | None, what: str) -> Iterator[None]:
    """Whatever a library raises while it takes something out of a checkpoint becomes one error.

    Args:
        folder: the checkpoint; None where there is none, and whatever is raised has another cause.
        what: what is taken, for the message.

    Raises:
        StorageError: it cannot be taken.
    """
    try:
        yield
    except (TunesmithError, MemoryError):
        raise
    except Exception as error:
        if folder is None or re.search("out of memory|can't allocate memory", str(error)):
            raise
        said = " ".join(str(error).split())[:300]
        raise StorageError(
            f"its {what} cannot be used ({type(error).__name__}: {said})", where=str(folder), remedy=_REMEDY
        ) from error


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _or_none(known: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or known(value)


def _entries(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and _count(one.get("step")) for one in value)


_STATE: dict[str, Callable[[Any], bool]] = {
    "global_step": _count,
    "max_steps": _count,
    "epoch": _or_none(_number),
    "num_train_epochs": _number,
    "train_batch_size": _or_none(_count),
    "log_history": _entries,
    "best_global_step": _or_none(_count),
    "best_metric": _or_none(_number),
    "best_model_checkpoint": _or_none(lambda value: isinstance(value, str)),
    "stateful_callbacks": lambda value: isinstance(value, dict),
}
_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "losses": lambda value: isinstance(value, list) and bool(value) and all(map(_number, value)),
    "last_logged_step": _count,
}


def _check(path: Path, known: dict[str, Callable[[Any], bool]]) -> None:
    values = read_json(path)
    if not isinstance(values, dict):
        raise StorageError("holds no object", where=str(path), remedy=_REMEDY)
    wrong = [name for name, holds in known.items() if not holds(values.get(name))]
    if wrong:
        raise StorageError(f"{wrong[0]} is missing, or nothing that a run writes", where=str(path), remedy=_REMEDY)
