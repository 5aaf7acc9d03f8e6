"""What a run looks like on a terminal (a live line with an ETA) and elsewhere (plain lines)."""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from typing_extensions import override

from tunesmith import notices
from tunesmith.cli.output import tell
from tunesmith.visible import visible

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 24
"""Bars in a row at most."""
MOST_LOSSES = 4096
"""Losses that are kept to draw them."""
LABEL = re.compile(r"(step +\d+|\w*) +")
"""What a line begins with, up to its first word."""


def is_live(console: Console) -> bool:
    """Whether lines of a terminal can be drawn again, and somebody wants to see it."""
    return console.is_interactive and notices.verbosity() != "quiet"


def make_listener(console: Console | None = None) -> Terminal | Plain:
    """The listener that fits standard error: live on a terminal, plain lines otherwise."""
    console = console or Console(file=sys.stderr, highlight=False)
    return Terminal(console) if is_live(console) else Plain()


def describe_start(facts: dict[str, Any]) -> list[str]:
    """What is about to happen, in a few lines: model, data, steps."""
    model, data, plan = facts["model"], facts["data"], facts["plan"]
    share = model["trainable"] / max(model["total"], 1)
    lines = [
        f"model     {model['name']}: {model['total']:,} parameters, {model['trainable']:,} trained ({share:.2%}); "
        f"{model['held']}, {model['precision']}, attention {model['attention']}, {model['device']}",
        f"data      {data['train_rows']:,} training rows, {_tokens(data)}; {data['eval_rows']:,} evaluation rows",
        f"steps     {plan['total_steps']:,} of {plan['global_batch_size']} rows "
        f"({plan['steps_per_epoch']:,} an epoch), {plan['warmup_steps']} of them warmup",
    ]
    if plan["num_processes"] > 1:
        strategy = facts["strategy"]
        lines.append(f"processes {plan['num_processes']}, {strategy['name']} ({strategy['origin']})")
    lost = data["dropped"] + data["cut"]
    if lost:
        lines.insert(2, f"          {data['dropped']:,} rows dropped, {data['cut']:,} cut: ledger.json names them")
    if facts.get("coverage"):
        from tunesmith.model.coverage import table

        marks = ["adapters", *[""] * (len(facts["coverage"]))]
        lines += [f"{mark:<10}{line}" for mark, line in zip(marks, table(facts["coverage"]), strict=True)]
    return lines


def _tokens(data: dict[str, Any]) -> str:
    if data["trained_share"] is None:
        return "tokenised as they are reached"
    return f"{data['train_tokens']:,} tokens, {data['trained_share']:.1%} of them trained"


def describe_entry(entry: dict[str, Any]) -> str:
    """One logged entry as a line."""
    shown = []
    for key, value in entry.items():
        if key in ("step", "epoch", "eval_runtime", "peak_memory_gib") or isinstance(value, dict | list):
            continue
        name = key.replace("learning_rate", "lr").replace("tokens_per_second", "tok/s")
        shown.append(f"{name} {_number(value)}")
    return f"step {entry['step']:>6}  " + "  ".join(shown)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return (
            f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
        )
    return str(value)


class Bar(Progress):
    """A live bar with counts and the time left, and lines below it that are cut to the terminal's width."""

    def __init__(self, what: str, console: Console, below: Callable[[int], Iterable[str]] = lambda width: ()) -> None:
        self._what, self._terminal, self._below = what, console, below
        super().__init__(
            TextColumn(_plain(what)),
            BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=30)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("eta", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            speed_estimate_period=float("inf"),  # a step, or a trial, may take minutes
        )

    def begin(self, total: int | None) -> None:
        """Show the bar, empty."""
        for task in self.task_ids:
            self.remove_task(task)
        self.start()
        self.add_task(self._what, total=total)

    def move(self, done: int, total: int | None) -> None:
        """So much is done."""
        for task in self.task_ids:
            self.update(task, completed=done, total=total)

    def end(self) -> None:
        """Take it away."""
        self.stop()

    @override
    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        width = self._terminal.width - 1
        for line in self._below(width):
            text = Text(visible(line), style="dim", no_wrap=True)
            if text.cell_len > width:
                text.truncate(width - 1, overflow="crop")
                text.append("." if self._terminal.options.ascii_only else "…")
            yield text


def row_of_bars(values: Sequence[float], width: int) -> str:
    """Numbers as a row of at most ``width`` bars between the lowest and the highest; of more numbers, means of
    neighbours."""
    count = min(len(values), width)
    edges = [round(place * len(values) / count) for place in range(count + 1)] if count else [0]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in itertools.pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


class Plain:
    """Plain lines on standard error."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        notices.listen(lambda text: tell(f"note: {text}"))

    def on_start(self, facts: dict[str, Any]) -> None:
        tell("\n".join(describe_start(facts)))
        self._began = time.monotonic()
        self._total = facts["plan"]["total_steps"]
        self._done_before: int | None = None

    def stepped(self, step: int, total: int) -> None:
        if self._done_before is None:  # a run that goes on took these in an earlier process
            self._done_before = step - 1

    def logged(self, entry: dict[str, Any]) -> None:
        elapsed = time.monotonic() - self._began
        done = max(int(entry["step"]) - (self._done_before or 0), 1)
        left = f"  eta {_clock(elapsed / done * (self._total - entry['step']))}" if "loss" in entry else ""
        tell(describe_entry(entry) + left)

    def sampled(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        return

    def saved(self, checkpoint: Path) -> None:
        return

    def on_end(self) -> None:
        return


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Terminal:
    """A bar, and below it the losses so far and the last sample; evaluations and notes stay above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._losses: list[float] = []
        self._latest: dict[str, Any] = {}
        self._sample = ""
        self._bar = Bar("training", console, self._below)
        notices.listen(lambda text: self._console.print(f"[yellow]note:[/yellow] {_plain(text)}"))

    def on_start(self, facts: dict[str, Any]) -> None:
        self._print("\n".join(describe_start(facts)))
        self._losses = []  # the processes may have been started again
        self._bar.begin(facts["plan"]["total_steps"])

    def stepped(self, step: int, total: int) -> None:
        self._bar.move(step, total)

    def logged(self, entry: dict[str, Any]) -> None:
        if "loss" not in entry:
            self._print(describe_entry(entry))
            return
        self._latest = entry
        if isinstance(entry["loss"], float):  # what is not finite is a text
            self._losses.append(entry["loss"])
        if len(self._losses) == MOST_LOSSES:  # older ones are then drawn closer together
            self._losses = [sum(pair) / 2 for pair in zip(self._losses[::2], self._losses[1::2], strict=True)]

    def sampled(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        if not samples:
            return
        first = {name: " ".join(str(text).split()) for name, text in samples[0].items()}
        if "reference" in first:  # says more than a prompt, which may be long
            expected, answer = (
                textwrap.shorten(first[name], 45, placeholder="...") for name in ("reference", "answer")
            )
            self._sample = f"sample at {step}: {answer} (expected: {expected})"
        else:
            asked = textwrap.shorten(first["question"], 30, placeholder="...")
            self._sample = f"sample at {step}: {asked} -> {first['answer']}"

    def saved(self, checkpoint: Path) -> None:
        return

    def on_end(self) -> None:
        self._bar.end()
        if len(self._losses) > 1:
            first, last = (_number(self._losses[place]) for place in (0, -1))
            bars = self._row_of_losses(self._console.width - len(f"losses    {first}  {last}"))
            self._print(f"losses    {first} {bars or 'to'} {last}")
        self._losses = []

    def _print(self, text: str) -> None:
        """Lines above the bar; what a narrow terminal has no room for goes on below a line's words."""
        for line in visible(text).splitlines():
            label = LABEL.match(line)
            hanging = " " * (label.end() if label else 0)
            wrapped = textwrap.fill(line, self._console.width, subsequent_indent=hanging, break_on_hyphens=False)
            self._console.print(_plain(wrapped if len(line) > self._console.width else line))

    def _below(self, width: int) -> Iterator[str]:
        """What stands below the bar, in lines of at most ``width`` characters."""
        if self._latest:
            loss, rate = (_number(self._latest[name]) for name in ("loss", "learning_rate"))
            speed = self._latest.get("tokens_per_second")
            rest = f"  lr {rate}" + (f"  {_number(speed)} tok/s" if speed is not None else "")
            bars = self._row_of_losses(width - len(f"loss {loss}  {rest}"))
            yield f"loss {loss}  {bars}{rest}" if bars else f"loss {loss}{rest}"
        if self._sample:
            yield self._sample

    def _row_of_losses(self, width: int) -> str:
        """The losses as bars; none where the terminal cannot show them or has no room."""
        return "" if self._console.options.ascii_only or width < 4 else row_of_bars(self._losses, min(width, HISTORY))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(visible(text))


@contextmanager
def follow(what: str, below: Callable[[int], Iterable[str]] = lambda width: ()) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; silent elsewhere. Yields a function (done, total).

    Args:
        what: what is done.
        below: lines below the bar, for a width.
    """
    console = Console(file=sys.stderr, highlight=False)
    if not is_live(console):
        yield lambda done, total: None
        return
    with Bar(what, console, below) as bar:
        bar.begin(None)
        yield bar.move
