"""The curves of a report page: inline SVG, whose colours and type are the page's own, light or dark.

No text of a run gets into a picture (matplotlib would read a dollar sign as a formula): titles and legends are the
page's. Nothing is smoothed and nothing left out.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from tunesmith.report.page_facts import Run
from tunesmith.report.plots import NOT_SHARES, Series, label_of

NUM_COLOURS = 8
"""Colours of the page's style sheet, ``--c0`` to ``--c7``; they go round."""
_COLOURS = [f"#0101f{number}" for number in range(NUM_COLOURS)]
_INK, _GRID = "#020202", "#030303"
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Strokes of figures that share a panel, where colours tell runs apart."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tunesmith",
    "font.size": 10,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.useoffset": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_SIZE = (4.6, 2.2)
"""Inches of 72 units: small, so that text is still to be read where the page is as wide as a phone."""
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
        Curve(title, _picture(title, lines, f"k{place}-"), tuple(lines))
        for place, (title, names) in enumerate(_panels(runs).items())
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


def _picture(title: str, lines: Sequence[Line], prefix: str) -> Markup:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # figures of any size may have been logged
        figure = Figure(figsize=_SIZE)
        FigureCanvasSVG(figure)
        figure.subplots_adjust(left=0.125, right=0.985, top=0.93, bottom=0.12)
        _draw(figure.add_subplot(), lines)
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inlined(stream.getvalue(), title, prefix)


def _draw(axis: Any, lines: Sequence[Line]) -> None:
    for line in lines:
        steps, values = line.points
        axis.plot(
            steps,
            values,
            color=_COLOURS[line.colour],
            linestyle=_DASHES[line.dash],
            linewidth=1.6,
            marker="o" if len(steps) <= _POINTS_MARKED else None,
            markersize=3,
        )
    axis.margins(x=0.02, y=0.08)
    axis.locator_params(axis="x", nbins=6, integer=True)
    axis.locator_params(axis="y", nbins=5)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)
    axis.ticklabel_format(axis="x", style="plain")


def _inlined(svg: str, title: str, prefix: str) -> Markup:
    """A picture as a part of a page: without the frame of a file of its own and without styles that would reach out of
    it, with names that no other picture of the page has, and with the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for mark in ('id="', 'href="#', "url(#"):
        svg = svg.replace(mark, mark + prefix)
    for colour, page in _page_colours().items():
        svg = svg.replace(colour, page)
    head = f'<svg class="curve" role="img" aria-label="{escape(title)}"'
    svg = re.sub(r'<svg(?P<rest>[^>]*?) width="[^"]*"', r"<svg\g<rest>", svg, count=1)
    svg = re.sub(r'<svg(?P<rest>[^>]*?) height="[^"]*"', r"<svg\g<rest>", svg, count=1)
    return Markup(svg.replace("<svg", head, 1))  # noqa: S704 - numbers and our own words alone


def _page_colours() -> Mapping[str, str]:
    own = {colour: f"var(--c{number})" for number, colour in enumerate(_COLOURS)}
    return own | {_INK: "var(--soft)", _GRID: "var(--line)"}
