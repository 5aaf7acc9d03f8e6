"""Several models on the same rows: their figures side by side, and whether a difference may be chance.

It judges nothing anew; it compares predictions that were judged already, row by row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.evaluate.significance import ALPHA, mcnemar, paired_difference

if TYPE_CHECKING:
    from tunesmith.evaluate.result import EvaluationResult

BESIDE = ("parse_failure_rate", "loss", "token_accuracy")
"""Figures without an interval that the tables show as well."""
LEGEND = """[low, high]: 95% interval over the choice of rows; *: the difference is hardly chance, by a paired test
(p < 0.05: exact McNemar test for shares of rows, permutation test for other figures)
gained, lost: rows that this model alone, or the first alone, got right; p: exact McNemar test on them"""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model differs from the first one.

    Attributes:
        gained: rows that it alone got right.
        lost: rows that the first one alone got right.
        p: how likely so uneven a split is if both are equally good (exact McNemar test, two-sided).
        figures: {figure: {"difference": its figure less the first one's, "confidence": 95% interval of that, None where
            the rows say nothing of it, "p": that of a paired test}}; see ``paired_difference``.
    """

    gained: int
    lost: int
    p: float
    figures: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models judged on the same rows: all figures of each, and how each but the first differs from that one."""

    task: str
    num_examples: int
    models: dict[str, dict[str, Any]]
    differences: dict[str, Difference]

    @property
    def compared_with(self) -> str:
        """The first model."""
        return next(iter(self.models))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the attributes, and ``compared_with``."""
        return {"compared_with": self.compared_with} | asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows, one a model: every figure with its 95% interval (a star where its difference is
        hardly chance), then rows gained and lost, and p."""
        metrics = self.models[self.compared_with]
        names = [name for difference in self.differences.values() for name in difference.figures]
        names += [name for figures in self.models.values() for name in figures.get("confidence", ())]
        names = [*dict.fromkeys(names or [metrics["main_metric"]])]
        names += [name for name in BESIDE if all(name in figures for figures in self.models.values())]
        rows = []
        for model, figures in self.models.items():
            difference = self.differences.get(model)
            cells = [_figure(figures, name) + _star(difference, name) for name in names]
            cells += (
                ["", "", ""]
                if difference is None
                else [
                    f"+{difference.gained}",
                    f"-{difference.lost}",
                    f"{difference.p:.2g}" if difference.p >= 0.001 else "<0.001",
                ]
            )
            rows.append([model, *cells])
        return ["model", *names, "gained", "lost", "p"], rows

    def title(self) -> str:
        """What the table is about, in a line."""
        return f"{self.task}, {self.num_examples:,} rows; compared with {self.compared_with}"

    def text(self, width: int | None = None) -> str:
        """The table for a terminal; where it is wider than ``width`` characters, a block for each model instead."""
        head, rows = self.table()
        widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [head, *rows]
        ]
        if width is None or max(map(len, lines)) <= width:
            return "\n".join([self.title(), "", *lines, "", LEGEND])
        names = max(map(len, head))
        blocks = [
            "\n".join(
                [row[0], *(f"  {name:<{names}}  {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell)]
            )
            for row in rows
        ]
        said = [fill(text, width) for text in (self.title(), " ".join(LEGEND.split()))]
        return "\n\n".join([said[0], *blocks, said[1]])

    def markdown(self) -> str:
        """The table in Markdown, with what its columns mean."""
        head, rows = self.table()
        lines = [f"| {' | '.join(line)} |" for line in [head, *rows]]
        lines.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
        return "\n".join([self.title(), "", *lines, "", LEGEND, ""]).replace("*", r"\*")


def compare(results: Mapping[str, EvaluationResult], *, samples: int = 1000, seed: int = 0) -> Comparison:
    """Compare models with the first of them.

    Args:
        results: evaluations by the models' names.
        samples: resamplings behind intervals and tests of differences; 0 leaves those out.
        seed: decides the resamplings.

    Raises:
        DataError: they were not judged by the same task on the same rows.
    """
    (first, reference), *others = results.items()
    differences = {}
    for name, result in others:
        _check_same(first, reference, name, result)
        pairs = [
            (one["correct"], two["correct"]) for one, two in zip(reference.predictions, result.predictions, strict=True)
        ]
        figures: dict[str, dict[str, Any]] = {}
        for figure, statistic in reference.statistics.items() if samples else ():
            if figure in result.statistics:
                interval, p = paired_difference(statistic, result.statistics[figure], samples, seed)
                difference = result.metrics[figure] - reference.metrics[figure]
                figures[figure] = {"difference": difference, "confidence": interval, "p": p}
        differences[name] = Difference(*mcnemar(pairs), figures)
    metrics = reference.metrics
    models = {name: result.metrics for name, result in results.items()}
    return Comparison(metrics["task"], metrics["num_examples"], models, differences)


def safe_name(name: str) -> str:
    """A model's name as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.") or "model"


def _figure(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    interval = metrics.get("confidence", {}).get(name)
    return f"{metrics[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _star(difference: Difference | None, name: str) -> str:
    """A star for a figure whose difference is hardly chance; a space keeps the column straight."""
    if difference is None or name not in difference.figures:
        return " "
    return "*" if difference.figures[name]["p"] < ALPHA else " "


def _check_same(first: str, one: EvaluationResult, second: str, other: EvaluationResult) -> None:
    if other.metrics["task"] != one.metrics["task"]:
        raise DataError(
            f"{second} is judged by the task {other.metrics['task']} and {first} by {one.metrics['task']}",
            remedy="name one for all of them (--task)",
        )
    for left, right in zip(one.predictions, other.predictions, strict=False):
        if (left["source"], left["reference"]) != (right["source"], right["reference"]):
            raise DataError(
                f"{second} is judged on other rows than {first}: {right['source']} ({right['reference']!r}) is not "
                f"{left['source']} ({left['reference']!r})"
            )
    if len(one.predictions) != len(other.predictions):
        raise DataError(f"{second} is judged on {len(other.predictions)} rows and {first} on {len(one.predictions)}")
