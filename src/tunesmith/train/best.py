"""The best checkpoint of a run, and what takes its place once it is damaged or gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import notices
from tunesmith.errors import StorageError


@dataclass(frozen=True, slots=True)
class Best:
    """An evaluation whose checkpoint is complete."""

    step: int
    value: float
    path: Path


def best_complete(
    history: Sequence[dict[str, Any]],
    metric: str,
    folders: Sequence[Path],
    problem: Callable[[Path], str | None],
    *,
    greater_is_better: bool,
) -> Best | None:
    """The best evaluation of which a complete checkpoint is there; where it is not the best of all, that is said.

    Args:
        history: what was logged; evaluations hold ``metric`` and ``step``.
        metric: decides what is best. Of equal ones the earliest counts, and one that is no number never does.
        folders: run folders in which checkpoints may lie, the first one first.
        problem: says why a checkpoint cannot be trusted.
        greater_is_better: direction of the metric.

    Returns:
        None where nothing was evaluated after a step.

    Raises:
        StorageError: evaluations are there, and none of their checkpoints can be trusted.
    """
    values = [(float(entry[metric]), entry["step"]) for entry in history if entry.get("step") and metric in entry]
    ranked = sorted(
        ((value, step) for value, step in values if math.isfinite(value)),
        key=lambda pair: (-pair[0] if greater_is_better else pair[0], pair[1]),
    )
    lost: list[str] = []
    for value, step in ranked:
        places = [folder / f"checkpoint-{step}" for folder in folders]
        reasons = [(place, problem(place)) for place in places if place.is_dir()]
        sound = next((place for place, reason in reasons if reason is None), None)
        if sound is not None:
            if lost:
                notices.notify(f"{'; '.join(lost)}: the best one left is {sound.name} ({metric} {value:g})")
            return Best(step, value, sound)
        if reasons or not lost:  # an evaluation that was never the best left no checkpoint
            reason = reasons[0][1] if reasons else "is gone"
            lost.append(f"checkpoint-{step} ({metric} {value:g}): {reason}")
    if not ranked:
        return None
    raise StorageError(
        f"no checkpoint of an evaluation can be trusted ({'; '.join(lost)})",
        where=str(folders[0]),
        remedy="bring it back, or go on without load_best_model_at_end (--allow_changed load_best_model_at_end)",
    )
