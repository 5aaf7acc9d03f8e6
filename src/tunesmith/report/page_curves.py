"""The curves of a report page: inline SVG, whose colours and type are the page's own, light or dark.

No text of a run gets into a picture: titles and legends are the page's. Nothing is smoothed and nothing left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from tunesmith.report.axis import Axis, axis_of
from tunesmith.report.page_facts import Run
from tunesmith.report.plots import NOT_SHARES, Series, label_of

NUM_COLOURS = 8
"""Colours of the page's style sheet, ``--c0`` to ``--c7``; they go round."""
_DASHES = ("", "6.4 3.2", "1.6 2.4", "9.6 3.2 1.6 3.2")
"""Strokes of figures that share a panel, where colours tell runs apart."""
_WIDTH, _HEIGHT = 331.2, 158.4
"""Small, so that text is still to be read where the page is as wide as a phone."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 41.4, 326.2, 13.0, 139.4
"""Where the axes stand: room for the ticks' labels left of and below them."""
_COLUMN = 0.5
"""Points that are no further apart across the page cannot be told apart."""
_POINTS_MARKED = 30
_FIXED: tuple[tuple[str, str], ...] = (
    ("training loss", "loss"),
    ("evaluation loss", "eval_loss"),
    ("learning rate", "learning_rate"),
    ("gradient norm", "grad_norm"),
    ("throughput, tokens per second", "tokens_per_second"),
    ("peak memory so far, GiB", "peak_memory_gib"),
    ("token accuracy at evaluations", "eval_token_accuracy"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel: its name, colour and stroke by their numbers, and its points."""

    name: str
    colour: int
    dash: int
    points: Series


@dataclass(frozen=True, slots=True)
class Curve:
    """A panel as the page shows it: title, picture, and the names of its lines where there are several."""

    title: str
    picture: Markup
    lines: tuple[Line, ...]


def curves(runs: Sequence[Run]) -> list[Curve]:
    """The panels of some runs, each figure that was logged in one of them.

    Of one run, colours tell figures apart; of several, colours are the runs and strokes the figures.
    """
    return [
        Curve(title, _picture(title, lines), tuple(lines))
        for title, names in _panels(runs).items()
        if (lines := list(_lines(runs, names)))
    ]


def _panels(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Title of each panel -> the figures that share it."""
    logged = list(dict.fromkeys(name for run in runs for name in run.series))
    panels = {title: [name] for title, name in _FIXED}
    if len(runs) == 1 and {"loss", "eval_loss"} <= set(logged):
        panels = {"loss": ["loss", "eval_loss"]} | {
            title: names for title, names in panels.items() if names[0] not in ("loss", "eval_loss")
        }
    shares = [name for name in logged if name.startswith("eval_") and not name.endswith(NOT_SHARES)]
    return panels | {"generated answers at evaluations": shares[:NUM_COLOURS]}


def _lines(runs: Sequence[Run], names: Sequence[str]) -> Iterable[Line]:
    several = len(runs) > 1
    for number, run in enumerate(runs):
        for place, name in enumerate(names):
            if name in run.series:
                said = label_of(name) if len(names) > 1 or not several else ""
                yield Line(
                    ": ".join(filter(None, (run.name if several else "", said))),
                    (number if several else place) % NUM_COLOURS,
                    (place if several else 0) % len(_DASHES),
                    run.series[name],
                )


def _picture(title: str, lines: Sequence[Line]) -> Markup:
    """A picture as a part of the page: numbers and our own words alone, in the page's type and colours."""
    across = axis_of((step for line in lines for step in line.points[0]), margin=0.02, most=6, whole=True)
    up = axis_of((value for line in lines for value in line.points[1]), margin=0.08, most=5)
    parts = [
        f'<svg class="curve" role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        *_grid([_across(across, tick) for tick in across.ticks], [_up(up, tick) for tick in up.ticks]),
        *_ticks(across, up),
        *(part for line in lines for part in _stroke(line, across, up)),
        "</svg>",
    ]
    return Markup("\n".join(parts))  # noqa: S704 - numbers and our own words alone


def _across(axis: Axis, value: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * axis.share(value)


def _up(axis: Axis, value: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * axis.share(value)


def _grid(upright: Sequence[float], level: Sequence[float]) -> Iterable[str]:
    ways = [f"M{x:.1f} {_TOP}V{_BOTTOM}" for x in upright] + [f"M{_LEFT} {y:.1f}H{_RIGHT}" for y in level]
    yield f'<path d="{"".join(ways)}" fill="none" stroke="var(--line)" stroke-width=".7"/>'
    yield f'<path d="M{_LEFT} {_BOTTOM}H{_RIGHT}" fill="none" stroke="var(--line)"/>'


def _ticks(across: Axis, up: Axis) -> Iterable[str]:
    """What the ticks say; a power of ten that all of an axis are written with stands above it."""
    yield '<g font-size="10" fill="var(--soft)" text-anchor="middle">'
    for tick, label in zip(across.ticks, across.labels, strict=True):
        yield f'<text x="{_across(across, tick):.1f}" y="{_BOTTOM + 11:.1f}">{label}</text>'
    yield '</g><g font-size="10" fill="var(--soft)" text-anchor="end">'
    for tick, label in zip(up.ticks, up.labels, strict=True):
        yield f'<text x="{_LEFT - 3.5:.1f}" y="{_up(up, tick) + 3.8:.1f}">{label}</text>'
    yield "</g>"
    if up.exponent:
        power = f"1e{up.exponent}".replace("-", "\N{MINUS SIGN}")
        yield f'<text font-size="10" fill="var(--soft)" x="{_LEFT}" y="{_TOP - 3:.1f}">{power}</text>'


def _stroke(line: Line, across: Axis, up: Axis) -> Iterable[str]:
    colour, dash = f"var(--c{line.colour})", _DASHES[line.dash]
    points = [(_across(across, step), _up(up, value)) for step, value in zip(*line.points, strict=True)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in _told_apart(points))
    yield f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"{dashes}/>'
    if len(points) <= _POINTS_MARKED:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points)


def _told_apart(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The points but for those that would not be seen: of each column, the first, the last and the outermost stay."""
    for _, group in groupby(points, key=lambda point: int(point[0] / _COLUMN)):
        column = list(group)
        heights = [y for _, y in column]
        kept = {0, len(column) - 1, heights.index(min(heights)), heights.index(max(heights))}
        yield from (column[place] for place in sorted(kept))
