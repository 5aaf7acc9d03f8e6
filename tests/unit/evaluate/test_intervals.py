"""Confidence intervals: published figures, scipy's and scikit-learn's, and what they must not depend on."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from tunesmith import notices
from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.intervals import confidence_intervals, mean_of
from tunesmith.evaluate.tasks import ClassificationTask, ScoredAnswer


@pytest.mark.parametrize(
    ("right", "number", "expected"),
    [(40, 40, [0.912, 1.0]), (0, 40, [0.0, 0.088]), (20, 40, [0.352, 0.648]), (1, 1, [0.207, 1.0]),
     (81, 263, [0.2553, 0.3662]), (15, 148, [0.0624, 0.1605])],
)  # fmt: skip
def test_shares_have_wilsons_interval(right: int, number: int, expected: list[float]) -> None:
    """The last two are examples of Newcombe (1998)."""
    scores = [1.0] * right + [0.0] * (number - right)
    found = confidence_intervals({"accuracy": mean_of(scores)}, 1, seed=0)["accuracy"]
    assert found == pytest.approx(expected, abs=6e-4)
    assert found[0] <= right / number <= found[1]


def test_other_means_have_the_bootstrap_interval_of_scipy() -> None:
    values = np.random.default_rng(0).beta(2, 5, 150)
    found = confidence_intervals({"mean": mean_of(values.tolist())}, 4000, seed=1)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=4000, rng=2).confidence_interval
    assert found == pytest.approx([theirs.low, theirs.high], abs=0.004)


def test_few_rows_and_many_rows_have_like_intervals() -> None:
    """The correction for skew ends at a number of rows; nobody should notice where."""
    values = np.random.default_rng(0).beta(1, 6, 1001)
    many = confidence_intervals({"mean": mean_of(values.tolist())}, 4000, seed=1)["mean"]
    fewer = confidence_intervals({"mean": mean_of(values[:-1].tolist())}, 4000, seed=1)["mean"]
    assert many == pytest.approx(fewer, abs=0.002)


def scored_classes(gold: list[str], said: list[str]) -> list[ScoredAnswer]:
    return [ScoredAnswer(Answer(answer, "json"), label, answer == label, {"accuracy": float(answer == label)})
            for answer, label in zip(said, gold, strict=True)]  # fmt: skip


def test_macro_f1_gets_the_interval_of_scikit_learns_macro_f1_over_drawn_rows() -> None:
    rng = random.Random(3)
    gold = [rng.choice("abc") for _ in range(120)]
    said = [label if rng.random() < 0.6 else rng.choice("abc") for label in gold]
    task = ClassificationTask(["a", "b", "c"])
    scored = scored_classes(gold, said)
    found = confidence_intervals(task.statistics(scored), 1000, seed=0)
    assert list(found) == ["accuracy", "macro_f1"]
    draws = np.random.default_rng(7).integers(0, 120, (300, 120))
    again = [f1_score(np.array(gold)[rows], np.array(said)[rows], average="macro") for rows in draws]
    assert found["macro_f1"] == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.03)
    figures = task.figures(scored)
    for name, (low, high) in found.items():
        assert low < figures[name] < high


def test_intervals_depend_on_the_seed_alone_and_touch_no_random_stream() -> None:
    statistics = {"mean": mean_of([0.1, 0.9, 0.4] * 15)}
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()
    first = confidence_intervals(statistics, 200, seed=1)
    assert confidence_intervals(statistics, 200, seed=1) == first
    assert confidence_intervals(statistics, 200, seed=2) != first
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize("values", [[0.5], [0.5] * 30, [None, 0.5, None], [None, None]])
def test_what_rows_cannot_say_has_no_interval_and_is_told(values: list[float | None], clean_notices: None) -> None:
    """An interval of no width would claim that nothing can change."""
    assert confidence_intervals({"f1": mean_of(values)}, 200, seed=0) == {}
    assert notices.collected() == [
        "f1 has no confidence interval: its rows are too few or too much alike to draw from"
    ]  # fmt: skip


def test_a_perfect_macro_f1_has_none_either(clean_notices: None) -> None:
    task, gold = ClassificationTask(["a", "b"]), ["a", "b"] * 20
    found = confidence_intervals(task.statistics(scored_classes(gold, gold)), 200, seed=0)
    assert found == {"accuracy": pytest.approx([0.912, 1.0], abs=1e-3)}
    assert "macro_f1 has no confidence interval" in notices.collected()[0]


def test_rows_without_the_figure_do_not_count() -> None:
    values = [0.2, 0.4, 0.9, 0.7] * 5
    alone = confidence_intervals({"f1": mean_of(values)}, 200, seed=0)
    assert confidence_intervals({"f1": mean_of([None, *values, None])}, 200, seed=0) == alone
    assert confidence_intervals({"f1": mean_of(values)}, 0, seed=0) == {}
