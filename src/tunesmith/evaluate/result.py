"""What an evaluation comes to: figures, a prediction for every row, kinds of mistakes; and the files that keep them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import StorageError
from tunesmith.report.belongings import add_files, is_finished
from tunesmith.report.folder import write_json, write_jsonl
from tunesmith.report.page import refresh_report
from tunesmith.report.record import RECORD

if TYPE_CHECKING:
    from tunesmith.evaluate.intervals import Statistic

PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"
MISTAKES = "mistakes.json"


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Figures over all rows, a prediction for each of them in their order, and kinds of mistakes with examples; and the
    figures with their rows' values, by which models are compared."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    folder: Path | None = None
    mistakes: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Statistic] = field(default_factory=dict, repr=False, compare=False)


def scalar_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures among ``metrics`` that a log or tracker can plot."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name not in ("num_examples", "majority_share")
    }


def write_result(folder: Path, result: EvaluationResult) -> None:
    """Write predictions, mistakes and then metrics; metrics never stand beside predictions they do not belong to.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        (folder / METRICS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error
    write_jsonl(folder / PREDICTIONS, result.predictions)
    write_json(folder / MISTAKES, result.mistakes)
    write_json(folder / METRICS, result.metrics)
    for run in folder.parents:
        if (run / RECORD).is_file():
            add_files(run, *(folder / name for name in (PREDICTIONS, MISTAKES, METRICS)))
            if is_finished(run):
                refresh_report(run)
            return
