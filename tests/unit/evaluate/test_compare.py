"""Comparing models: exact tests against their own definitions, and refusal of unequal rows."""

from __future__ import annotations

import random
from math import comb

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.compare import compare, mcnemar, safe_name
from tunesmith.evaluate.generate import Generation
from tunesmith.evaluate.result import EvaluationResult
from tunesmith.evaluate.scoring import Case, score_generations
from tunesmith.evaluate.tasks import NliTask

GOLD = [random.Random(1).randint(0, 1) for _ in range(120)]


def judged(share_right: float, seed: int, gold: list[int] = GOLD) -> EvaluationResult:
    """Label answers of which about a share is right."""
    rng = random.Random(seed)
    cases = [Case(f"rows.jsonl:{line}", "p", label) for line, label in enumerate(gold, start=1)]
    answers = [label if rng.random() < share_right else 1 - label for label in gold]
    texts = [f'{{"predicted_label": {label}}}' for label in answers]
    return score_generations(NliTask(), cases, [Generation(text, [1], True) for text in texts], bootstrap_samples=200)


def test_mcnemar_is_the_sum_of_binomial_terms() -> None:
    pairs = [(True, False)] * 3 + [(False, True)] * 9 + [(True, True)] * 20 + [(False, False)] * 5
    tail = sum(comb(12, k) for k in range(4)) / 2**12
    assert mcnemar(pairs) == (9, 3, pytest.approx(2 * tail))
    assert mcnemar([(True, True)] * 4) == (0, 0, 1.0)
    assert mcnemar([(False, True)]) == (1, 0, 1.0)


def test_a_clear_difference_is_told_from_chance() -> None:
    comparison = compare({"weak": judged(0.5, 1), "strong": judged(0.9, 2), "twin": judged(0.5, 1)}, samples=300)
    strong, twin = comparison.differences["strong"], comparison.differences["twin"]
    assert strong.p < 0.001
    assert (twin.gained, twin.lost, twin.p) == (0, 0, 1.0)
    for name in ("accuracy", "macro_f1"):
        models = comparison.models
        assert strong.figures[name]["difference"] == models["strong"][name] - models["weak"][name]
        low, high = strong.figures[name]["confidence"]
        assert 0 < low < strong.figures[name]["difference"] < high
        assert twin.figures[name] == {"difference": 0.0, "confidence": [0.0, 0.0]}


def test_a_paired_interval_is_narrower_than_that_of_two_strangers() -> None:
    """The models share most of their mistakes, so their difference is better known than either figure."""
    one, other = judged(0.7, 3), judged(0.7, 3)
    wrong = next(index for index, row in enumerate(other.predictions) if not row["correct"])
    cases = [Case(row["source"], "p", row["reference"]) for row in other.predictions]
    texts = [row["output"] for row in other.predictions]
    texts[wrong] = f'{{"predicted_label": {GOLD[wrong]}}}'
    better = score_generations(NliTask(), cases, [Generation(text, [1], True) for text in texts])
    difference = compare({"one": one, "better": better}, samples=300).differences["better"]
    assert (difference.gained, difference.lost) == (1, 0)
    low, high = difference.figures["accuracy"]["confidence"]
    alone = one.metrics["confidence"]["accuracy"]
    assert high - low < (alone[1] - alone[0]) / 3


def test_unequal_rows_are_refused_and_the_first_is_named() -> None:
    other = [*GOLD[:7], 1 - GOLD[7], *GOLD[8:]]
    with pytest.raises(DataError, match=r"rows\.jsonl:8 .* is not rows\.jsonl:8"):
        compare({"one": judged(0.5, 1), "two": judged(0.5, 1, other)})
    with pytest.raises(DataError, match="100 rows"):
        compare({"one": judged(0.5, 1), "two": judged(0.5, 1, GOLD[:100])})


def test_the_tables_hold_every_model_and_align() -> None:
    comparison = compare({"weak": judged(0.5, 1), "runs/a strong one": judged(0.9, 2)}, samples=100)
    head, *rows = comparison.text().split("\n\n")[1].splitlines()
    assert head.split()[0] == "model"
    assert head.split()[-3:] == ["gained", "lost", "p"]
    assert [row[: len("runs/a strong one")].strip() for row in rows] == ["weak", "runs/a strong one"]
    assert rows[1].endswith("<0.001")
    assert [row.count("]*") for row in rows] == [0, 2]
    assert len({row.index("[") for row in rows}) == 1
    markdown = [line for line in comparison.markdown().splitlines() if line.startswith("|")]
    assert len(markdown) == 4
    assert len({line.count("|") for line in markdown}) == 1
    assert comparison.to_dict()["compared_with"] == "weak"
    assert [safe_name(name) for name in ("runs/a b", "nano-mistral (untrained)", "..")] == [
        "a-b", "nano-mistral-untrained", "model",
    ]  # fmt: skip
