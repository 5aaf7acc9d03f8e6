"""How far figures can be trusted: bootstrap confidence intervals (Efron 1979).

Rows are drawn with replacement, as many as there are, and each figure is counted again; its interval runs between the
2.5% and the 97.5% quantile of those counts. It says how much the choice of evaluation rows matters, not how much
another training seed would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Statistic = Callable[[NDArray[np.int64]], float]

QUANTILES = (0.025, 0.975)


def confidence_intervals(
    statistics: Mapping[str, Statistic], num_rows: int, samples: int, seed: int
) -> dict[str, list[float]]:
    """95% interval [low, high] of every figure, by the percentile method; all figures see the same drawn rows.

    Args:
        statistics: each figure as a function of row numbers (an array with repetitions).
        num_rows: rows there are.
        samples: how often rows are drawn; 0 gives no intervals.
        seed: decides the draws; no global random stream is touched.
    """
    import numpy as np

    if not samples:
        return {}
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(samples):
        rows = generator.integers(0, num_rows, num_rows)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(rows))
    # A figure that only some rows have can be missing from a draw of few rows; such a draw says nothing about it.
    counted = {name: [value for value in values if not np.isnan(value)] for name, values in drawn.items()}
    return {name: np.quantile(values, QUANTILES).tolist() for name, values in counted.items() if values}


def mean_of(values: Sequence[float | None]) -> Statistic:
    """The mean over the rows drawn, of those that have a value."""
    import numpy as np

    array = np.array([np.nan if value is None else value for value in values])
    whole = bool(np.isfinite(array).all())

    def statistic(rows: NDArray[np.int64]) -> float:
        if whole:
            return float(array[rows].mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan
            return float(np.nanmean(array[rows]))

    return statistic
