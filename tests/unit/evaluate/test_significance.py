"""Paired tests and intervals against their definitions, published figures and simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from tunesmith.evaluate.intervals import Statistic, mean_of
from tunesmith.evaluate.metrics import macro_f1_of_counts
from tunesmith.evaluate.significance import difference_of_shares, mcnemar, paired_difference


def pairs_of(both: int, lost: int, gained: int, neither: int) -> list[tuple[bool, bool]]:
    return [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither


def test_mcnemar_is_the_sum_of_binomial_terms() -> None:
    tail = sum(comb(12, k) for k in range(4)) / 2**12
    assert mcnemar(pairs_of(20, 3, 9, 5)) == (9, 3, pytest.approx(2 * tail))
    assert mcnemar(pairs_of(4, 0, 0, 0)) == (0, 0, 1.0)
    assert mcnemar([(False, True)]) == (1, 0, 1.0)


def test_shares_of_pairs_have_the_published_interval() -> None:
    """First less second, by method 10 of Newcombe (1998)."""
    assert difference_of_shares(pairs_of(36, 12, 2, 0)) == pytest.approx([-0.3404, -0.0569], abs=1e-4)


def test_two_perfect_models_may_differ_on_other_rows() -> None:
    """Both shares are 1, and each may be as low as Wilson's bound n / (n + z squared)."""
    reach = 1 - 54 / (54 + 1.959964**2)
    assert difference_of_shares(pairs_of(54, 0, 0, 0)) == pytest.approx([-reach, reach])


def test_the_interval_of_paired_shares_covers_the_truth_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(0)
    kinds = np.array([(True, True), (True, False), (False, True), (False, False)])
    covered = 0
    for _ in range(400):
        drawn = kinds[rng.choice(4, 40, p=[0.6, 0.05, 0.2, 0.15])]
        low, high = difference_of_shares([(bool(a), bool(b)) for a, b in drawn])
        covered += low <= 0.15 <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_two_rows_say_nothing_though_every_draw_of_them_agrees() -> None:
    """Both rows got better, so a bootstrap interval leaves out 0; exchanged at random they do so in half the cases."""
    interval, p = paired_difference(mean_of([0.1, 0.2]), mean_of([0.5, 0.7]), 1000, seed=0)
    assert p == 0.5
    assert interval is None or interval[0] > 0


def test_other_figures_are_tested_by_exchanging_answers() -> None:
    rng = np.random.default_rng(1)
    first = rng.beta(2, 2, 60)
    second = np.clip(first + rng.normal(0.08, 0.1, 60), 0.001, 0.999)
    interval, p = paired_difference(mean_of(first.tolist()), mean_of(second.tolist()), 2000, seed=0)
    differences = second - first
    signs = rng.choice([-1, 1], (20000, 60))
    chance = np.mean(abs((signs * differences).mean(1)) >= abs(differences.mean()))
    assert p == pytest.approx(chance, abs=0.01)
    assert interval is not None
    half = 1.96 * differences.std(ddof=1) / 60**0.5
    assert interval == pytest.approx([differences.mean() - half, differences.mean() + half], abs=0.01)


def test_a_figure_that_is_no_mean_is_compared_as_a_whole() -> None:
    rng = np.random.default_rng(2)

    def macro_f1(cells: np.ndarray) -> float:
        return macro_f1_of_counts(np.bincount(cells, minlength=6).reshape(2, 3))

    gold = rng.integers(0, 2, 100)
    weak, strong = (np.where(rng.random(100) < share, gold, 1 - gold) for share in (0.5, 0.9))
    one, two = (Statistic(gold * 3 + said, macro_f1) for said in (weak, strong))
    interval, p = paired_difference(one, two, 500, seed=0)
    assert p < 0.01
    assert interval is not None
    assert 0 < interval[0] < macro_f1(two.values) - macro_f1(one.values) < interval[1]
    assert paired_difference(one, one, 500, seed=0) == (None, 1.0)


def test_rows_that_neither_model_has_do_not_count() -> None:
    one, two = [1.0, 0.0, 1.0, 0.0] * 5, [1.0, 1.0, 1.0, 0.0] * 5
    plain = paired_difference(mean_of(one), mean_of(two), 100, seed=0)
    assert paired_difference(mean_of([None, *one, None]), mean_of([None, *two, None]), 100, seed=0) == plain
