"""An axis of a picture: from where to where it goes, where its ticks stand and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LIMIT = 1e300
"""Sums of larger numbers are none; such a value is drawn at the edge."""
FLAT = 1e-9
"""Values that differ by less, as a share of the largest, lie on one line."""
STEPS = (1, 2, 2.5, 5, 10)
PLAIN = (-3, 4)
"""Powers of ten that ticks are not written with, the ends left out."""
MOST_DECIMALS = 15


@dataclass(frozen=True, slots=True)
class Axis:
    """Where an axis begins and ends, and its ticks: where they stand and what they say, times ten to ``exponent``."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    exponent: int

    def share(self, value: float) -> float:
        """How far along the axis a value lies, from 0 to 1."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def axis_of(values: Iterable[float], *, margin: float, most: int, whole: bool = False) -> Axis:
    """The axis for some values.

    Args:
        values: one at least.
        margin: room beyond the outermost, as a share of what lies between them.
        most: the most stretches between ticks.
        whole: whether ticks stand at whole numbers only, and are written without a power of ten.
    """
    low, high = _ends([float(value) for value in values], margin)
    ticks = _ticks(low, high, most, whole=whole)
    exponent = 0 if whole else _exponent(ticks)
    return Axis(low, high, ticks, _labels(ticks, exponent), exponent)


def _ends(values: list[float], margin: float) -> tuple[float, float]:
    low, high = _within(min(values)), _within(max(values))
    largest = max(abs(low), abs(high))
    if high - low <= max(FLAT * largest, 1 / LIMIT):
        low = high = (low + high) / 2
        room = 0.05 * largest if largest > 1 / LIMIT else 0.05
    else:
        room = margin * (high - low)
    return low - room, high + room


def _within(value: float) -> float:
    return min(max(value, -LIMIT), LIMIT)


def _ticks(low: float, high: float, most: int, *, whole: bool) -> tuple[float, ...]:
    """Multiples of a round number, as close as ``most`` allows."""
    wanted = (high - low) / most
    power = math.floor(math.log10(wanted))
    if whole:
        power = max(power, 0)
    unit = 10.0**power
    rounds = [step for step in STEPS if not whole or step * unit == int(step * unit)]
    step = next((step * unit for step in rounds if step * unit >= wanted * (1 - FLAT)), 10 * unit)
    found = (number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1))
    return tuple(tick for tick in found if low <= tick <= high)


def _exponent(ticks: tuple[float, ...]) -> int:
    """The power of ten that all ticks are written with; 0 where they are short without."""
    largest = max(map(abs, ticks), default=0.0)
    power = math.floor(math.log10(largest)) if largest else 0
    return 0 if PLAIN[0] < power < PLAIN[1] else power


def _labels(ticks: tuple[float, ...], exponent: int) -> tuple[str, ...]:
    """The ticks with as many decimals as tell them apart, all with the same."""
    scaled = [tick / 10.0**exponent for tick in ticks]
    close = 1e-6 * (scaled[1] - scaled[0] if len(scaled) > 1 else 1.0)
    decimals = next(
        (number for number in range(MOST_DECIMALS) if all(abs(round(tick, number) - tick) <= close for tick in scaled)),
        MOST_DECIMALS,
    )
    return tuple(f"{tick + 0.0:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in scaled)
