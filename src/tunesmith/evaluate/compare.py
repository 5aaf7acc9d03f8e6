"""Several models on the same rows: their figures side by side, and whether a difference may be chance.

It judges nothing anew; it compares predictions that were judged already, row by row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError

Result = tuple[dict[str, Any], Sequence[dict[str, Any]]]
"""Metrics and predictions of one model."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model differs from the first one in what it got right.

    Attributes:
        gained: rows that it alone got right.
        lost: rows that the first one alone got right.
        p: probability of a split at least as uneven if both were equally good (exact McNemar test, two-sided).
    """

    gained: int
    lost: int
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models judged on the same rows; ``differences`` has all but the first."""

    task: str
    num_examples: int
    metrics: dict[str, dict[str, Any]]
    differences: dict[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"task", "num_examples", "compared_with", "models": {name: metrics}, "differences": {name:
        {"gained", "lost", "p"}}}."""
        return {
            "task": self.task,
            "num_examples": self.num_examples,
            "compared_with": next(iter(self.metrics)),
            "models": self.metrics,
            "differences": {name: asdict(difference) for name, difference in self.differences.items()},
        }


def compare(results: Mapping[str, Result]) -> Comparison:
    """Compare models with the first of them.

    Raises:
        DataError: they were not judged by the same task on the same rows.
    """
    (first, (metrics, predictions)), *others = results.items()
    differences = {}
    for name, (other_metrics, other_predictions) in others:
        if other_metrics["task"] != metrics["task"]:
            raise DataError(
                f"{name} is judged by the task {other_metrics['task']} and {first} by {metrics['task']}",
                remedy="name one for all of them (--task)",
            )
        _check_same(first, predictions, name, other_predictions)
        pairs = [(one["correct"], two["correct"]) for one, two in zip(predictions, other_predictions, strict=True)]
        differences[name] = mcnemar(pairs)
    return Comparison(
        metrics["task"], metrics["num_examples"], {name: result[0] for name, result in results.items()}, differences
    )


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    """The exact test of McNemar (1947) on whether each row was right at first and right then: of the rows that only one
    of two equally good models got right, each has half."""
    from scipy.stats import binomtest

    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Difference(gained, lost, p)


def safe_name(name: str) -> str:
    """A name as a folder's name."""
    return re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.") or "model"


def _check_same(
    first: str, predictions: Sequence[dict[str, Any]], second: str, others: Sequence[dict[str, Any]]
) -> None:
    for one, two in zip(predictions, others, strict=False):
        if (one["source"], one["reference"]) != (two["source"], two["reference"]):
            raise DataError(
                f"{second} is judged on other rows than {first}: {two['source']} ({two['reference']!r}) is not "
                f"{one['source']} ({one['reference']!r})"
            )
    if len(predictions) != len(others):
        raise DataError(f"{second} is judged on {len(others)} rows and {first} on {len(predictions)}")
