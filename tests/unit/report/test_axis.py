"""Axes of pictures: ticks at round numbers that can be told apart, whatever the values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report.axis import LIMIT, axis_of

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("values", "labels", "exponent"),
    [
        ([0.0, 1.0], ("0.00", "0.25", "0.50", "0.75", "1.00"), 0),
        ([3.9, 4.7], ("4.0", "4.2", "4.4", "4.6"), 0),
        ([0.0, 0.001], ("0.00", "0.25", "0.50", "0.75", "1.00"), -3),
        ([10_000.0, 52_000.0], ("1", "2", "3", "4", "5"), 4),
        ([-3.0, 3.0], ("\N{MINUS SIGN}2", "0", "2"), 0),
        ([0.5], ("0.48", "0.49", "0.50", "0.51", "0.52"), 0),
        ([0.0], ("\N{MINUS SIGN}0.04", "\N{MINUS SIGN}0.02", "0.00", "0.02", "0.04"), 0),
    ],
)
def test_ticks_are_round_and_short(values: list[float], labels: tuple[str, ...], exponent: int) -> None:
    axis = axis_of(values, margin=0.08 if len(values) > 1 else 0.0, most=5)
    assert (axis.labels, axis.exponent) == (labels, exponent)


@pytest.mark.parametrize(
    ("steps", "labels"),
    [([1], ("1",)), ([1, 4], ("1", "2", "3", "4")), ([10, 130], ("25", "50", "75", "100", "125")),
     ([1, 100_000], ("0", "20000", "40000", "60000", "80000", "100000"))],
)  # fmt: skip
def test_steps_are_whole(steps: list[int], labels: tuple[str, ...]) -> None:
    assert axis_of(steps, margin=0.02, most=6, whole=True).labels == labels


@given(st.lists(FINITE, min_size=1), st.booleans())
def test_every_value_has_its_place(values: list[float], whole: bool) -> None:
    axis = axis_of(values, margin=0.08, most=5, whole=whole)
    places = [axis.share(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 1
    assert len(axis.ticks) == len(axis.labels) <= 7
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(map(math.isfinite, axis.ticks))
    assert len(axis.ticks) >= 2 or whole
    if max(map(abs, values)) < LIMIT:
        shown = [float(label.replace("\N{MINUS SIGN}", "-")) * 10.0**axis.exponent for label in axis.labels]
        assert shown == pytest.approx(axis.ticks, rel=1e-5, abs=1e-5 * (axis.high - axis.low))
        assert len(set(axis.labels)) == len(axis.labels)
