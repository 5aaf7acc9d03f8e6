"""How far figures can be trusted: 95% confidence intervals, by scipy.

A share of rows (right or wrong) has Wilson's interval (1927), which is right for few rows and for shares of 0 and 1.
Any other figure is counted again on rows drawn with replacement (bootstrap, Efron 1979). An interval says how much the
choice of evaluation rows matters, not how much another training seed would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.notices import notify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
MOST_ROWS_FOR_BCA = 1000
"""Rows up to which bootstrap intervals are corrected for bias and skew (BCa), whose cost is rows squared; beyond, the
plain quantiles are as good."""
_DRAWN_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure as a function of its rows: a value for each row, and what is made of the values.

    Attributes:
        values: one a row; nan where a row does not have this figure.
        of: the figure of any choice of the values, in one dimension; ``mean`` takes an axis.
    """

    values: NDArray[Any]
    of: Callable[..., Any]

    @property
    def is_mean(self) -> bool:
        return self.of is mean

    @property
    def is_share(self) -> bool:
        """Whether this is the share of rows that are right, each being 0 or 1."""
        present = self.present
        return self.is_mean and bool(((present == 0) | (present == 1)).all())

    @property
    def present(self) -> NDArray[Any]:
        """The values that there are."""
        return self.values[self.has_value]

    @property
    def has_value(self) -> NDArray[np.bool_]:
        """For every row, whether it has this figure."""
        found: NDArray[np.bool_] = self.values == self.values  # only nan is not itself
        return found


def mean(values: NDArray[Any], axis: int = -1) -> Any:
    """Mean of the values that there are; of none, nan."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan
        return np.nanmean(values, axis=axis)


def mean_of(values: Sequence[float | None]) -> Statistic:
    """The mean over the rows that have a value."""
    import numpy as np

    return Statistic(np.array([np.nan if value is None else value for value in values], dtype=float), mean)


def confidence_intervals(statistics: Mapping[str, Statistic], samples: int, seed: int) -> dict[str, list[float]]:
    """95% interval [low, high] of every figure that has one.

    A figure that is the same on whatever rows are drawn has no interval from them, and no width of 0 either: it is left
    out, which is said.

    Args:
        statistics: the figures.
        samples: how often rows are drawn; 0 gives no intervals at all.
        seed: decides the draws; no global random stream is touched.
    """
    if not samples:
        return {}
    intervals = {}
    for name, statistic in statistics.items():
        values = statistic.present
        if statistic.is_share:
            found = share_interval(int(values.sum()), len(values)) if len(values) else None
        else:
            found = bootstrap_interval([values], statistic.of, samples, seed)
        if found is None:
            what = "has no confidence interval: its rows are too few or too much alike to draw from"
            notify(f"{name} {what}", detail=True)
        else:
            intervals[name] = found
    return intervals


def share_interval(right: int, number: int) -> list[float]:
    """Wilson's 95% interval of a share: ``right`` of at least one row."""
    from scipy.stats import binomtest

    found = binomtest(right, number).proportion_ci(LEVEL, method="wilson")
    return [float(found.low), float(found.high)]


def bootstrap_interval(
    samples: Sequence[NDArray[Any]], figure: Callable[..., Any], draws: int, seed: int
) -> list[float] | None:
    """95% interval of a figure by the bootstrap; None where the draws do not differ, so that they say nothing.

    Args:
        samples: values of the same rows, drawn together.
        figure: what is made of them; one with an ``axis`` is counted for many draws at once.
        draws: how often rows are drawn.
        seed: decides which.
    """
    import numpy as np
    from scipy.stats import bootstrap

    rows = len(samples[0])
    if rows < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that are all alike, which are seen below
        found = bootstrap(
            tuple(samples),
            figure,
            paired=True,
            confidence_level=LEVEL,
            n_resamples=draws,
            batch=drawn_at_once(rows),
            method="BCa" if rows <= MOST_ROWS_FOR_BCA else "percentile",
            rng=seed,
        )
    interval = [float(found.confidence_interval.low), float(found.confidence_interval.high)]
    return interval if np.isfinite(interval).all() and interval[0] < interval[1] else None


def drawn_at_once(rows: int) -> int:
    """How many draws of so many rows are in memory together."""
    return max(1, _DRAWN_AT_ONCE // rows)
