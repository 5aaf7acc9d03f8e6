"""What a record tells, of whatever kind its values are: each is taken where it is of the kind that it should be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

StatusOf = Callable[[Mapping[str, Any], Path], str]
"""Tells, by a record and the run's folder, what became of the run."""


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """``value`` where it is a finite number, else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def text_of(value: Any) -> str:
    """A value as a person reads it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def recorded_status(facts: Mapping[str, Any], folder: Path) -> str:
    """What became of a run, as its record says."""
    return text_of(facts.get("status", "unknown"))


def status_now(is_held: Callable[[Path], bool]) -> StatusOf:
    """Tells ``killed`` of a run whose record says that it runs although nobody holds its folder.

    Args:
        is_held: whether a process trains in a folder.
    """

    def status(facts: Mapping[str, Any], folder: Path) -> str:
        recorded = recorded_status(facts, folder)
        return "killed" if recorded == "running" and not is_held(folder) else recorded

    return status
