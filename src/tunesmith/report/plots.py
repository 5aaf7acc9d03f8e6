"""``curves.png``: how a run went, drawn from ``metrics.jsonl`` alone.

Nothing is smoothed and nothing left out. matplotlib is imported when a picture is drawn, and draws without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.report.folder import read_jsonl

METRICS = "metrics.jsonl"
CURVES = "curves.png"

WIDTH, ROW_HEIGHT, DPI = 12.0, 3.6, 100
"""Size in inches; 1200 pixels wide."""
COLOURS = ("#2f6db5", "#d1642d", "#3c8d5a", "#8a5aa8", "#b5892f", "#5b6770")
LABELS = {
    "loss": "training",
    "eval_loss": "evaluation",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
}
NOT_SHARES = ("loss", "runtime", "mean_new_tokens")
"""Figures of an evaluation that have no place between 0 and 1."""

Series = tuple[list[int], list[float]]
"""Steps and values."""


def draw_curves(folder: Path, best_step: int | None = None) -> Path | None:
    """Draw a run's losses, learning rate, token accuracy and task figures into its folder.

    Args:
        folder: the run folder.
        best_step: step of the evaluation that was best, which is marked.

    Returns:
        The picture, or None where no two points make a line.
    """
    series = read_series(folder / METRICS)
    panels = [(title, names) for title, names in _panels(series) if names]
    if not any(len(series[name][0]) > 1 for _, names in panels for name in names):
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // 2)
    style = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9aa3ab",
        "axes.labelcolor": "#404850",
        "xtick.color": "#404850",
        "ytick.color": "#404850",
        "axes.grid": True,
        "grid.color": "#e6e9ec",
        "axes.axisbelow": True,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, 2, figsize=(WIDTH, ROW_HEIGHT * rows), dpi=DPI, squeeze=False, layout="constrained"
        )
        for axis, (title, names) in zip(axes.flat, panels, strict=False):
            _draw(axis, title, {name: series[name] for name in names}, best_step)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        figure.savefig(folder / CURVES)
        pyplot.close(figure)
    return folder / CURVES


def read_series(path: Path) -> dict[str, Series]:
    """Every figure of ``metrics.jsonl`` by its name; what is not a finite number has no point."""
    series: dict[str, Series] = {}
    for entry in read_jsonl(path):
        for name, value in entry.items():
            if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = series.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(float(value))
    return series


def _panels(series: Mapping[str, Series]) -> list[tuple[str, list[str]]]:
    """Titles and the figures that share their axes."""
    shares = [
        name
        for name in series
        if name.startswith("eval_") and name != "eval_token_accuracy" and not name.endswith(NOT_SHARES)
    ]
    return [
        ("loss", [name for name in ("loss", "eval_loss") if name in series]),
        ("learning rate", [name for name in ("learning_rate",) if name in series]),
        ("token accuracy", [name for name in ("eval_token_accuracy",) if name in series]),
        ("generated answers", shares),
    ]


def _draw(axis: Any, title: str, lines: Mapping[str, Series], best_step: int | None) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color="#202830")
    axis.set_xlabel("step")
    for colour, (name, (steps, values)) in zip(_repeated(COLOURS, len(lines)), lines.items(), strict=True):
        label = LABELS.get(name, name.removeprefix("eval_").replace("_", " "))
        axis.plot(steps, values, color=colour, linewidth=1.6, marker="o" if len(steps) <= 30 else None, markersize=3.5,
                  label=label)  # fmt: skip
        if best_step in steps and name.startswith("eval_"):
            axis.plot([best_step], [values[steps.index(best_step)]], marker="o", markersize=8, markerfacecolor="white",
                      markeredgecolor=colour, markeredgewidth=2, zorder=5)  # fmt: skip
    if best_step is not None and any(name.startswith("eval_") for name in lines):
        axis.axvline(best_step, color="#9aa3ab", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axis.annotate(f"best: step {best_step}", (best_step, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                      textcoords="offset points", fontsize=8, color="#5b6770")  # fmt: skip
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)


def _repeated(colours: Sequence[str], number: int) -> list[str]:
    return [colours[index % len(colours)] for index in range(number)]
