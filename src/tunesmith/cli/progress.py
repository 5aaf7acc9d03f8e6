"""What a run looks like on a terminal (a live line with an ETA) and elsewhere (plain lines)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tunesmith import notices
from tunesmith.cli.output import tell
from tunesmith.visible import visible


def make_listener(console: Console | None = None) -> Terminal | Plain:
    """The listener that fits standard error: live on a terminal, plain lines otherwise."""
    console = console or Console(file=sys.stderr, highlight=False)
    return Terminal(console) if console.is_terminal and notices.verbosity() != "quiet" else Plain()


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


class Plain:
    """Plain lines on standard error."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        notices.listen(lambda text: tell(f"note: {text}"))

    def on_start(self, facts: dict[str, Any]) -> None:
        tell("\n".join(describe_start(facts)))
        self._began = time.monotonic()
        self._total = facts["plan"]["total_steps"]

    def stepped(self, step: int, total: int) -> None:
        return

    def logged(self, entry: dict[str, Any]) -> None:
        elapsed = time.monotonic() - self._began
        step = max(int(entry["step"]), 1)
        left = f"  eta {_clock(elapsed / step * (self._total - step))}" if "loss" in entry else ""
        tell(describe_entry(entry) + left)

    def saved(self, checkpoint: Path) -> None:
        return

    def on_end(self) -> None:
        return


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Terminal:
    """A live line with steps, loss, learning rate, speed and the time left; evaluations stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[latest]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: Any = None
        notices.listen(lambda text: self._console.print(f"[yellow]note:[/yellow] {_plain(text)}"))

    def on_start(self, facts: dict[str, Any]) -> None:
        self._console.print(_plain("\n".join(describe_start(facts))))
        self._progress.start()
        if self._task is not None:  # the processes were started again
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("training", total=facts["plan"]["total_steps"], latest="")

    def stepped(self, step: int, total: int) -> None:
        self._progress.update(self._task, completed=step, total=total)

    def logged(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            latest = f"loss {_number(entry['loss'])}  lr {_number(entry['learning_rate'])}"
            speed = f"  {_number(entry['tokens_per_second'])} tok/s" if "tokens_per_second" in entry else ""
            self._progress.update(self._task, latest=latest + speed)
        else:
            self._console.print(_plain(describe_entry(entry)))

    def saved(self, checkpoint: Path) -> None:
        return

    def on_end(self) -> None:
        self._progress.stop()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(visible(text))


@contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """A live count of things done on a terminal; silent elsewhere. Yields a function (done, total)."""
    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal or notices.verbosity() == "quiet":
        yield lambda done, total: None
        return
    columns = (TextColumn(_plain(what)), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
