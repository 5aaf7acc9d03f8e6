"""What ``tunesmith evaluate`` prints of metrics and mistakes."""

from __future__ import annotations

from tunesmith.cli.evaluate import describe_metrics, describe_mistakes
from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.result import EvaluationResult
from tunesmith.evaluate.scoring import Case, score_generations
from tunesmith.evaluate.tasks import ClassificationTask


def scored(labels: list[str], pairs: list[tuple[str, str]]) -> EvaluationResult:
    cases = [Case(f"rows.jsonl:{line}", "p", gold) for line, (gold, _) in enumerate(pairs, start=1)]
    generations = [Generation(output, [1], True) for _, output in pairs]
    return score_generations(ClassificationTask(labels), cases, generations, bootstrap_samples=50)


def test_figures_have_their_interval_and_mistakes_an_example() -> None:
    result = scored(["good", "bad"], [("good", "good"), ("good", "bad"), ("bad", "bad"), ("bad", "who knows?")] * 5)
    low, high = result.metrics["confidence"]["accuracy"]
    lines = describe_metrics(result.metrics)
    assert f"accuracy             0.5000  (95%: {low:.4f} to {high:.4f})" in lines
    assert "majority_share       0.5000" in lines
    assert lines[lines.index("confusion matrix (rows: truth, columns: answer)") + 1].split() == [
        "good",
        "bad",
        "unreadable",
    ]
    assert describe_mistakes(result.mistakes) == [
        "mistakes (all kinds, with examples, in mistakes.json)",
        "  good -> bad: 5, as rows.jsonl:2: ...bad",
        "  unreadable: 5, as rows.jsonl:4: ...who knows?",
    ]
    assert describe_mistakes({}) == []


def test_labels_and_outputs_cannot_steer_a_terminal() -> None:
    label = "a\x1b[31m\nb"
    result = scored([label, "c"], [(label, "c"), (label, f"no\x1b]0;title\x07\n{'x' * 500}"), ("c", "c")])
    shown = "\n".join([*describe_metrics(result.metrics), *describe_mistakes(result.mistakes)])
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert shown.count("a\\x1b[31m↵ b") == 4  # per class, twice in the matrix, and as a kind of mistake
    assert max(map(len, shown.splitlines())) < 160
