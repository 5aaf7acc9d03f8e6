"""Scores from generated texts, without a model."""

from __future__ import annotations

from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.result import scalar_metrics
from tunesmith.evaluate.scoring import Case, score_generations
from tunesmith.evaluate.tasks import NliTask

FIELDS = ["source", "prompt", "reference", "output", "answer", "read_as", "correct", "stopped", "scores"]


def test_scoring_needs_no_model_and_keeps_the_order() -> None:
    outputs = ['{"predicted_label": 1}', "no idea", 'so {"predicted_label": 0}', '{"predicted_label": 0}']
    cases = [Case(f"rows.jsonl:{line}", f"prompt {line}", reference) for line, reference in enumerate([1, 1, 1, 0])]
    generations = [Generation(text, [5] * 4, stopped) for text, stopped in zip(outputs, [True, False] * 2, strict=True)]
    result = score_generations(NliTask(), cases, generations)
    assert [prediction["source"] for prediction in result.predictions] == [case.source for case in cases]
    assert [list(prediction) for prediction in result.predictions] == [FIELDS] * 4
    assert [prediction["correct"] for prediction in result.predictions] == [True, False, False, True]
    assert result.metrics["task"] == "nli"
    assert result.metrics["num_examples"] == 4
    assert result.metrics["accuracy"] == 0.5
    assert result.metrics["parse_failure_rate"] == 0.25
    assert result.metrics["stopped_share"] == 0.5
    assert result.metrics["mean_new_tokens"] == 4.0
    assert result.metrics["read_as"] == {"json": 2, "json_in_text": 1, "unreadable": 1}
    scalars = scalar_metrics(result.metrics)
    assert {"accuracy", "macro_f1", "parse_failure_rate"} <= scalars.keys()
    assert all(isinstance(value, float) for value in scalars.values())
