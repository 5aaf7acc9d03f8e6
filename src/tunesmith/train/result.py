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
    """A finished run."""

    folder: Path
    model_folder: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]


def model_folder_of(resolved: Resolved) -> Path:
    """Where the finished model of a run is."""
    training = resolved.config.training
    return Path(training.output_dir, training.final_subdir or "")


def read_result(resolved: Resolved) -> TrainResult:
    """The result of a run that other processes have finished, from its record.

    Raises:
        StorageError: there is no such record.
    """
    folder = Path(resolved.config.training.output_dir)
    return TrainResult(folder, model_folder_of(resolved), **read_json(folder / RECORD)["result"])
