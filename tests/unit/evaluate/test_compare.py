"""Comparing models: exact tests against their own definitions, and refusal of unequal rows."""

from __future__ import annotations

import random

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.compare import compare, safe_name
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
        assert strong.figures[name]["p"] < 0.01
        assert (twin.figures[name]["difference"], twin.figures[name]["p"]) == (0.0, 1.0)
    low, high = twin.figures["accuracy"]["confidence"]
    assert -0.1 < low < 0 < high < 0.1  # on other rows they might differ
    assert twin.figures["macro_f1"]["confidence"] is None  # whatever rows are drawn, these two are alike


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


@pytest.mark.parametrize("gained", [5, 6])
def test_a_star_is_there_only_where_the_test_says_so(gained: int) -> None:
    """Five rows gained and none lost are chance (p = 0.0625), though the rows that are drawn nearly all say more."""
    cases = [Case(f"rows.jsonl:{line}", "p", 1) for line in range(40)]

    def with_right(number: int) -> EvaluationResult:
        texts = ['{"predicted_label": 1}'] * number + ['{"predicted_label": 0}'] * (40 - number)
        generations = [Generation(text, [1], True) for text in texts]
        return score_generations(NliTask(), cases, generations, bootstrap_samples=200)

    comparison = compare({"one": with_right(20), "two": with_right(20 + gained)}, samples=1000)
    head, (_, *cells) = comparison.table()[0], comparison.table()[1][1]
    assert comparison.differences["two"].figures["accuracy"]["p"] == comparison.differences["two"].p
    starred = {name: cell.endswith("*") for name, cell in zip(head[1:], cells, strict=True)}
    assert starred["accuracy"] == starred["macro_f1"] == (gained == 6)


def test_a_figure_without_an_interval_keeps_its_column() -> None:
    """A model that is always wrong has no interval of macro F1, and is often what others are compared with."""
    wrong = [1 - label for label in GOLD]
    cases = [Case(f"rows.jsonl:{line}", "p", label) for line, label in enumerate(GOLD, start=1)]
    generations = [Generation(f'{{"predicted_label": {label}}}', [1], True) for label in wrong]
    worst = score_generations(NliTask(), cases, generations, bootstrap_samples=200)
    assert "macro_f1" not in worst.metrics["confidence"]
    comparison = compare({"worst": worst, "strong": judged(0.9, 2)}, samples=100)
    head, rows = comparison.table()
    assert head[:3] == ["model", "accuracy", "macro_f1"]
    assert rows[0][2].strip() == "0.000"
    assert rows[1][2].endswith("]*")


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


def test_a_narrow_terminal_gets_a_block_for_each_model() -> None:
    comparison = compare({"weak": judged(0.5, 1), "strong": judged(0.9, 2)}, samples=100)
    assert comparison.text(500) == comparison.text()
    narrow = comparison.text(60)
    assert max(map(len, narrow.splitlines())) <= 60
    weak, strong = narrow.split("\n\n")[1:3]
    assert (weak.splitlines()[0], strong.splitlines()[0]) == ("weak", "strong")
    assert "gained" not in weak
    (figures,) = [row for row in comparison.table()[1] if row[0] == "strong"]
    assert [line.split(maxsplit=1)[1] for line in strong.splitlines()[1:]] == figures[1:]
