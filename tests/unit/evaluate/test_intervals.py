"""Bootstrap intervals against scipy's, and what they must not depend on."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from tunesmith.evaluate.answers import Answer
from tunesmith.evaluate.intervals import confidence_intervals, mean_of
from tunesmith.evaluate.tasks import ClassificationTask, ScoredAnswer


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).beta(2, 5, 150)
    found = confidence_intervals({"mean": mean_of(values.tolist())}, 150, 4000, seed=1)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert found == pytest.approx([theirs.low, theirs.high], abs=0.004)


def test_macro_f1_gets_the_interval_of_scikit_learns_macro_f1_over_drawn_rows() -> None:
    rng = random.Random(3)
    gold = [rng.choice("abc") for _ in range(120)]
    said = [label if rng.random() < 0.6 else rng.choice("abc") for label in gold]
    task = ClassificationTask(["a", "b", "c"])
    scored = [ScoredAnswer(Answer(answer, "json"), label, answer == label, {"accuracy": float(answer == label)})
              for answer, label in zip(said, gold, strict=True)]  # fmt: skip
    found = confidence_intervals(task.statistics(scored), 120, 1000, seed=0)
    assert list(found) == ["accuracy", "macro_f1"]
    draws = np.random.default_rng(7).integers(0, 120, (300, 120))
    again = [f1_score(np.array(gold)[rows], np.array(said)[rows], average="macro") for rows in draws]
    assert found["macro_f1"] == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.03)
    figures = task.figures(scored)
    for name, (low, high) in found.items():
        assert low < figures[name] < high


def test_intervals_depend_on_the_seed_alone_and_touch_no_random_stream() -> None:
    statistics = {"mean": mean_of([0.0, 1.0] * 20)}
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()
    first = confidence_intervals(statistics, 40, 200, seed=1)
    assert confidence_intervals(statistics, 40, 200, seed=1) == first
    assert confidence_intervals(statistics, 40, 200, seed=2) != first
    assert np.random.get_state()[1].tolist() == state


def test_edges() -> None:
    assert confidence_intervals({"mean": mean_of([1.0])}, 1, 0, seed=0) == {}
    assert confidence_intervals({"mean": mean_of([1.0, 1.0])}, 2, 50, seed=0) == {"mean": [1.0, 1.0]}
    seldom = {"seldom": mean_of([0.5, *[None] * 99])}
    found = [confidence_intervals(seldom, 100, 1, seed=seed) for seed in range(20)]
    assert {} in found  # the only draw may have no such row, and then there is nothing to say
    assert {"seldom": [0.5, 0.5]} in found
    # one row of three has the figure: draws without it say nothing, and the others say 0.5
    assert confidence_intervals({"mean": mean_of([None, 0.5, None])}, 3, 200, seed=0) == {"mean": [0.5, 0.5]}
