"""What a run's settings say about its evaluations."""

from __future__ import annotations

from tunesmith.config.resolve import Resolved


def evaluates(resolved: Resolved) -> bool:
    """Whether the run has evaluation rows and a strategy that uses them."""
    data, training = resolved.config.data, resolved.config.training
    return training.eval_strategy != "no" and bool(data.eval_data or data.eval_split or data.dev_split)


def is_of_tokens(metric: str) -> bool:
    """Whether every evaluation gives the metric, answers generated or not."""
    return metric.removeprefix("eval_") in ("loss", "token_accuracy")
