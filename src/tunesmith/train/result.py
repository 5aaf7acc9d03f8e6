"""What a finished run came to, as it is handed to whoever started it or read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.resolve import Resolved
from tunesmith.report.folder import read_json
from tunesmith.report.record import RECORD


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A run that has ended.

    Attributes:
        folder: the run folder.
        model_folder: where the finished model is.
        steps: optimizer steps that were done.
        seconds: how long that took.
        metrics: the last training loss, and the figures of the last or best evaluation.
        stopped: why the run stopped before its end, and how to go on; None for one that is finished.
        first_step: ``seconds`` up to the end of its first step and their ``parts``, see ``first_step.py``; None where
            no step was taken now.
    """

    folder: Path
    model_folder: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]
    stopped: str | None = None
    first_step: dict[str, Any] | None = None


def model_folder_of(resolved: Resolved) -> Path:
    """Where the finished model of a run is."""
    training = resolved.config.training
    return Path(training.output_dir, training.final_subdir or "")


def read_result(resolved: Resolved) -> TrainResult:
    """The result of a run that other processes have finished or stopped, from its record.

    Raises:
        StorageError: there is no such record.
    """
    folder = Path(resolved.config.training.output_dir)
    record = read_json(folder / RECORD)
    result = record.get("result") or {"steps": 0, "seconds": 0.0, "metrics": {}}
    return TrainResult(
        folder, model_folder_of(resolved), **result, stopped=record.get("stopped"), first_step=record.get("first_step")
    )
