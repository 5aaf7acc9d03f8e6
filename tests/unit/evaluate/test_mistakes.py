"""Kinds of mistakes, counted, with examples."""

from __future__ import annotations

from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.scoring import Case, score_generations
from tunesmith.evaluate.tasks import ReasoningTask


def test_kinds_are_counted_and_the_first_rows_are_their_examples() -> None:
    outputs = ["#### 5", "#### 6", "#### 7", "#### 8", "#### 9", "none", "x" * 400, "#### 5"]
    cases = [Case(f"rows.jsonl:{line}", "p", "5") for line in range(1, 9)]
    generations = [Generation(text, [1], len(text) < 100 and line < 7) for line, text in enumerate(outputs)]
    result = score_generations(ReasoningTask(), cases, generations)
    assert result.metrics["mistakes"] == {"wrong number": 4, "unreadable": 2, "not stopped": 2}
    assert list(result.mistakes) == ["wrong number", "unreadable", "not stopped"]
    wrong = result.mistakes["wrong number"]["examples"]
    assert [example["source"] for example in wrong] == ["rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4"]
    assert wrong[0] == {"source": "rows.jsonl:2", "reference": "5", "answer": "6", "output_end": "#### 6"}
    cut = result.mistakes["not stopped"]["examples"]
    assert [example["source"] for example in cut] == ["rows.jsonl:7", "rows.jsonl:8"]  # a right answer may run on
    assert cut[0]["output_end"] == "x" * 300


def test_no_mistakes() -> None:
    result = score_generations(ReasoningTask(), [Case("x:1", "p", "5")], [Generation("#### 5", [1], True)])
    assert result.mistakes == result.metrics["mistakes"] == {}
    assert "confidence" not in result.metrics
