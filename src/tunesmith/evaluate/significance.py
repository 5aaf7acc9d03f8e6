"""Whether two models on the same rows differ by more than chance: paired tests and intervals, by scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.evaluate.intervals import Statistic, bootstrap_interval, drawn_at_once, share_interval

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHA = 0.05
"""A difference with a smaller p is hardly chance."""


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int, float]:
    """Rows gained, rows lost and p of the exact test of McNemar (1947).

    Args:
        pairs: for every row, whether the first model was right and whether the second one was. Of the rows that only
            one of two equally good models got right, each has half.
    """
    from scipy.stats import binomtest

    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    return gained, lost, float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_difference(first: Statistic, second: Statistic, draws: int, seed: int) -> tuple[list[float] | None, float]:
    """95% interval of the second figure less the first, and p of the difference if both models were equally good.

    A share of rows has the score interval for paired shares and the exact test of McNemar. Any other figure has a
    paired bootstrap interval, None where the draws do not differ, and a test that exchanges the models' answers row by
    row (permutation test; exact for few rows).

    Args:
        first, second: the same figure of two models, on the same rows.
        draws: how often rows are drawn and answers exchanged.
        seed: decides which.
    """
    either = first.has_value | second.has_value
    one, two = first.values[either], second.values[either]
    if first.is_share and second.is_share and (first.has_value == second.has_value).all() and len(one):
        pairs = [(bool(a), bool(b)) for a, b in zip(one, two, strict=True)]
        return difference_of_shares(pairs), mcnemar(pairs)[2]
    figure = _difference(first)
    return bootstrap_interval([one, two], figure, draws, seed), _permutation_p(one, two, figure, draws, seed)


def difference_of_shares(pairs: Sequence[tuple[bool, bool]]) -> list[float]:
    """95% interval of the second share less the first one's, of pairs (Newcombe 1998, method 10).

    It joins Wilson's intervals of both shares and counts how far they go together.

    Args:
        pairs: at least one; for every row, whether the first model was right and whether the second one was.
    """
    number = len(pairs)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    right = (both + lost, both + gained)
    shares = [count / number for count in right]
    (low1, high1), (low2, high2) = (share_interval(count, number) for count in right)
    margins = right[0] * right[1] * (number - right[0]) * (number - right[1])
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(excess - number / 2, 0.0)
    together = excess / margins**0.5 if margins else 0.0
    difference = shares[1] - shares[0]
    below, above = shares[1] - low2, high2 - shares[1]  # reaches of the second share, then of the first one
    first_below, first_above = shares[0] - low1, high1 - shares[0]
    down = (below**2 - 2 * together * below * first_above + first_above**2) ** 0.5
    up = (above**2 - 2 * together * above * first_below + first_below**2) ** 0.5
    return [difference - down, difference + up]


def _difference(statistic: Statistic) -> Callable[..., Any]:
    if statistic.is_mean:

        def of_many(one: Any, two: Any, axis: int = -1) -> Any:
            return statistic.of(two, axis=axis) - statistic.of(one, axis=axis)

        return of_many

    def of_one(one: Any, two: Any) -> Any:
        return statistic.of(two) - statistic.of(one)

    return of_one


def _permutation_p(one: Any, two: Any, figure: Callable[..., Any], draws: int, seed: int) -> float:
    from scipy.stats import permutation_test

    if len(one) < 2:
        return 1.0  # one row exchanged gives as large a difference
    found = permutation_test(
        (one, two),
        figure,
        permutation_type="samples",
        n_resamples=draws,
        batch=drawn_at_once(len(one)),
        rng=seed,
    )
    return float(found.pvalue)
