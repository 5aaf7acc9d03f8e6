"""Judging a model by its answers while it trains: for which rows, by which figures, and where the answers are kept.

What is generated and how it is scored stands in ``evaluate``; when it happens is the trainer's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy
from tunesmith.errors import ConfigError
from tunesmith.evaluate.generate import generate
from tunesmith.evaluate.result import scalar_metrics, write_result
from tunesmith.evaluate.rows import sampled
from tunesmith.evaluate.run import evaluate_rows
from tunesmith.evaluate.scoring import figure_names, task_for
from tunesmith.evaluate.subject import EVALUATION
from tunesmith.train.arguments import best_metric
from tunesmith.train.generation import generate_share
from tunesmith.train.prepare import PreparedData
from tunesmith.train.processes import is_main_process

TOKEN_FIGURES = ("loss", "token_accuracy")
"""Figures of every evaluation, with and without generated answers."""


class Evaluator:
    """Generates answers to the run's evaluation rows, or to a sample of them, and scores them.

    Every evaluation's predictions and figures are kept in ``evaluation/step-N`` of the run folder, so the figures of a
    model that was exported can be traced to single answers.

    Args:
        resolved: the run's configuration.
        data: the run's rows and their builder.
        strategy: how several processes share the run; where they spread its weights, all of them answer together.

    Raises:
        ConfigError: the settings name no task.
        DataError: a row does not say what its answer should be.
    """

    def __init__(self, resolved: Resolved, data: PreparedData, strategy: Strategy) -> None:
        self._evaluation = resolved.config.evaluation
        self._seed = resolved.config.training.seed
        self._folder = Path(resolved.config.training.output_dir) / EVALUATION
        self._builder = data.builder
        self._rows = sampled(data.eval_rows, self._evaluation.generate_limit, self._evaluation.generate_seed)
        self._task = task_for(self._evaluation, self._builder, self._rows)
        self._generator = generate if strategy.shards_parameters else generate_share
        self.names = figure_names(self._task, self._builder, self._rows)
        """Names of the figures that an evaluation will give."""

    def __call__(self, model: Any, step: int, token_figures: dict[str, float]) -> dict[str, float]:
        """The figures of the model as it is after ``step``; ``token_figures`` are kept beside them."""
        result = evaluate_rows(
            model,
            self._builder,
            self._rows,
            self._task,
            self._evaluation,
            seed=self._seed,
            generator=self._generator,
        )
        figures = scalar_metrics(result.metrics)
        if is_main_process():
            result.metrics.update(token_figures)
            write_result(self._folder / f"step-{step}", result)
        return figures


def make_evaluator(resolved: Resolved, data: PreparedData, strategy: Strategy) -> Evaluator | None:
    """The evaluator that a configuration asks for, or None.

    Raises:
        ConfigError: the metric that decides what is best will not be among the figures.
        DataError: a row does not say what its answer should be.
    """
    wanted = resolved.config.evaluation.generate and bool(data.eval_rows)
    evaluator = Evaluator(resolved, data, strategy) if wanted else None
    metric = best_metric(resolved)
    names = [*TOKEN_FIGURES, *(evaluator.names if evaluator is not None else ())]
    if metric is not None and metric.removeprefix("eval_") not in names:
        raise ConfigError(
            f"no evaluation gives {metric}",
            where=resolved.origins["training.metric_for_best_model"],
            remedy=f"choose one of {', '.join(f'eval_{name}' for name in names)}",
        )
    return evaluator
