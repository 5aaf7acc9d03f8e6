"""The NLI rows: right, balanced, without cues in one sentence, and separate on the held-out side."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.synthetic import nli, nli_squares
from tunesmith.synthetic import vocabulary as v

TRAIN, HELDOUT = nli.make_nli(3000, 300, seed=0)


def _texts(row: dict[str, Any]) -> list[str]:
    return [row["premise"], row["hypothesis"]]


def test_rows_have_the_documented_keys_and_unique_ids() -> None:
    rows = TRAIN + HELDOUT
    assert (len(TRAIN), len(HELDOUT)) == (3000, 300)
    keys = {"id", "premise", "hypothesis", "thought_process", "predicted_label", "phenomenon", "relation"}
    assert all(set(row) == keys for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({tuple(_texts(row)) for row in rows}) == len(rows)


def test_label_is_one_exactly_for_entailment_and_the_thought_says_so() -> None:
    relations = Counter(row["relation"] for row in TRAIN)
    assert set(relations) == {"entailment", "neutral", "contradiction"}
    assert min(relations.values()) > 600
    for row in TRAIN + HELDOUT:
        assert row["predicted_label"] == (row["relation"] == "entailment")
        ending = "so it follows." if row["predicted_label"] else "so it does not follow."
        assert row["thought_process"].startswith("step 1: ")
        assert row["thought_process"].endswith(f"step 3: {ending}")


@pytest.mark.parametrize("rows", [TRAIN, HELDOUT], ids=["train", "heldout"])
def test_no_phenomenon_gives_the_label_away(rows: list[dict[str, Any]]) -> None:
    labels: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        labels[row["phenomenon"]].append(row["predicted_label"])
    assert set(labels) == set(nli_squares.PHENOMENA)
    for phenomenon, values in labels.items():
        assert 0.45 <= sum(values) / len(values) <= 0.55, phenomenon


def _naive_bayes_accuracy(train: Iterable[tuple[str, int]], test: list[tuple[str, int]]) -> float:
    """Accuracy of word pairs in one sentence as evidence for the label, with add-one smoothing."""
    counts: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for text, label in train:
        counts[label].update(_features(text))
    vocabulary = set(counts[0]) | set(counts[1])
    totals = {label: sum(counts[label].values()) + len(vocabulary) for label in (0, 1)}
    right = 0
    for text, label in test:
        score = sum(
            math.log((counts[1][f] + 1) / totals[1]) - math.log((counts[0][f] + 1) / totals[0]) for f in _features(text)
        )
        right += int(score > 0) == label
    return right / len(test)


def _features(text: str) -> list[str]:
    words = text.lower().rstrip(".").split()
    return words + [f"{a} {b}" for a, b in pairwise(words)]


@pytest.mark.parametrize("side", ["premise", "hypothesis"])
def test_one_sentence_alone_does_not_predict_the_label(side: str) -> None:
    train = [(row[side], row["predicted_label"]) for row in TRAIN]
    test = [(row[side], row["predicted_label"]) for row in HELDOUT]
    assert _naive_bayes_accuracy(train, test) <= 0.58


def test_held_out_combinations_never_occur_in_training() -> None:
    assert all(not v.held_out_pairs(_texts(row)) for row in TRAIN)
    assert all(v.held_out_pairs(_texts(row)) for row in HELDOUT)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert nli.make_nli(100, 40, seed=3) == nli.make_nli(100, 40, seed=3)
    assert nli.make_nli(100, 40, seed=3) != nli.make_nli(100, 40, seed=4)
    assert nli.make_nli(100, 40, seed=3)[1] == nli.make_nli(500, 40, seed=3)[1]


def test_asking_for_more_rows_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nli, "PHENOMENA", {"negation": (nli_squares.negation_opposite,)})
    with pytest.raises(DataError, match="ask for fewer"):
        nli.make_nli(10_000_000, 0, seed=0)


def test_thought_and_reflection_rows() -> None:
    thoughts, reflections = nli.make_nli_thoughts(200, wrong_share=0.25, seed=0)
    assert (len(thoughts), len(reflections)) == (200, 50)
    assert [row["id"] for row in thoughts if not row["correct"]] == [row["id"] for row in reflections]
    for row in thoughts:
        assert list(row) == [
            "id", "premise", "hypothesis", "thought_process", "predicted_label", "true_label", "correct",
        ]  # fmt: skip
        assert row["correct"] == (row["predicted_label"] == row["true_label"])
    train, _ = nli.make_nli(200, 0, seed=0)
    right = {row["id"]: row for row in train}
    for row in reflections:
        assert list(row) == [
            "id", "premise", "hypothesis", "thought_process", "predicted_label", "true_label", "error_analysis",
            "improved_thought_process",
        ]  # fmt: skip
        assert row["improved_thought_process"] == right[row["id"]]["thought_process"]
        assert row["true_label"] == right[row["id"]]["predicted_label"] != row["predicted_label"]
        assert row["thought_process"] != row["improved_thought_process"]


def test_source_rows_are_a_plain_table() -> None:
    assert nli.source_rows(TRAIN[:1]) == [
        {
            "premise": TRAIN[0]["premise"],
            "hypothesis": TRAIN[0]["hypothesis"],
            "label": TRAIN[0]["predicted_label"],
        }
    ]
