"""``curves.png``: how a run went, drawn from ``metrics.jsonl`` alone.

Nothing is smoothed and nothing left out. matplotlib is imported when a picture is drawn, and draws without a display.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.report.folder import read_jsonl

METRICS = "metrics.jsonl"
CURVES = "curves.png"

WIDTH, ROW_HEIGHT, DPI = 12.0, 3.4, 100
"""Size in inches; 1200 pixels wide."""
LABELS, MARGIN, LEGEND, LETTER, TOP, BOTTOM = 0.8, 0.3, 0.6, 0.08, 0.4, 0.6
"""Inches around the panels; a layout that matplotlib finds by itself takes as long as the drawing."""
BETWEEN = 0.18
"""Room between two panels, as a share of their height."""
COLOURS = ("#2f6db5", "#d1642d", "#3c8d5a", "#8a5aa8", "#b5892f", "#5b6770", "#c2456b", "#3a9aa8")
INK, PALE, GRID = "#303840", "#8a949d", "#e6e9ec"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
}
QUICK = 1
"""How hard the picture is compressed: harder takes as long as a third of the drawing and saves some ten kilobytes."""
NOT_SHARES = ("loss", "token_accuracy", "runtime", "mean_new_tokens", "stopped_share")
"""Ends of the names of evaluation figures that have a panel of their own, or none."""

Series = tuple[list[int], list[float]]
"""Steps and values."""


def draw_curves(folder: Path, best: Mapping[str, Any] | None = None) -> Path | None:
    """Draw a run's losses, learning rate, token accuracy and task figures into its folder.

    Args:
        folder: the run folder.
        best: ``step`` and ``metric`` of the evaluation that was best, which are marked.

    Returns:
        The picture, or None where no two points make a line.
    """
    series = read_series(folder / METRICS)
    if all(len(steps) < 2 for steps, _ in series.values()):
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(series)
    with pyplot.rc_context(STYLE):
        height = ROW_HEIGHT * len(panels)
        figure, axes = pyplot.subplots(len(panels), 1, figsize=(WIDTH, height), dpi=DPI, squeeze=False, sharex=True)
        figure.subplots_adjust(
            left=LABELS / WIDTH, right=1 - _right(panels) / WIDTH, bottom=BOTTOM / height, top=1 - TOP / height,
            hspace=BETWEEN,
        )  # fmt: skip
        for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
            _draw(axis, title, {name: series[name] for name in names}, best)
        axes.flat[-1].set_xlabel("step")
        figure.savefig(folder / CURVES, pil_kwargs={"compress_level": QUICK})
        pyplot.close(figure)
    return folder / CURVES


def read_series(path: Path) -> dict[str, Series]:
    """Every figure of ``metrics.jsonl`` by its name; what is not a finite number has no point."""
    series: dict[str, Series] = {}
    for entry in read_jsonl(path):
        for name, value in entry.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                steps, values = series.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(float(value))
    return series


def _panels(series: Mapping[str, Series]) -> dict[str, list[str]]:
    """Title of each panel -> the figures that share it."""
    answers = [name for name in series if name.startswith("eval_") and not name.endswith(NOT_SHARES)]
    wanted = {
        "loss": ["loss", "eval_loss"],
        "learning rate": ["learning_rate"],
        "token accuracy at evaluations": ["eval_token_accuracy"],
        "generated answers at evaluations": answers,
    }
    found = {title: [name for name in names if name in series] for title, names in wanted.items()}
    return {title: names for title, names in found.items() if names}


def label_of(name: str) -> str:
    """A figure's name as a legend says it."""
    return {"loss": "training", "eval_loss": "evaluation"}.get(name, name.removeprefix("eval_").replace("_", " "))


def _right(panels: Mapping[str, list[str]]) -> float:
    """Inches right of the panels: where lines share one, their legend stands there."""
    told = [len(label_of(name)) for names in panels.values() if len(names) > 1 for name in names]
    return min(LEGEND + LETTER * max(told), WIDTH / 2) if told else MARGIN


def _draw(axis: Any, title: str, lines: Mapping[str, Series], best: Mapping[str, Any] | None) -> None:
    # at a height that is given: to find it, matplotlib would lay out every label once more
    axis.set_title(title, loc="left", y=1.0, fontsize=11, fontweight="bold", color=INK)
    for number, (name, (steps, values)) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        is_best = best is not None and name == best["metric"]
        marker = "o" if len(steps) <= 40 else None
        axis.plot(steps, values, color=colour, linewidth=2.2 if is_best else 1.4, marker=marker, markersize=3.5,
                  label=label_of(name))  # fmt: skip
        if best is not None and is_best:
            value = values[steps.index(best["step"])]
            axis.plot([best["step"]], [value], "o", markersize=9, markerfacecolor="white", markeredgecolor=colour,
                      markeredgewidth=2, zorder=5)  # fmt: skip
            axis.annotate(f"best: {value:.4g} at step {best['step']}", (best["step"], value), xytext=(8, 8),
                          textcoords="offset points", fontsize=9, color=colour, zorder=6)  # fmt: skip
    if best is not None:
        axis.axvline(best["step"], color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axis.margins(y=0.12)
    axis.locator_params(axis="x", integer=True)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
