"""``tunesmith runs``: the runs below a folder, what differs between some of them, and taking one away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say, say_json, tell
from tunesmith.errors import ConfigError, StorageError
from tunesmith.program import named
from tunesmith.report import belongings
from tunesmith.report.record import RECORD
from tunesmith.report.runs import (
    COLUMNS,
    STATUSES,
    Listed,
    differences,
    find_runs,
    remove_run,
    sort_runs,
    summary_of,
)
from tunesmith.train.lock import held, is_held
from tunesmith.visible import one_line

USAGE = """usage: tunesmith runs [FOLDER] [options]

  tunesmith runs list [FOLDER] [--status STATUS] [--sort METRIC]   the runs at and below a folder
  tunesmith runs compare RUN RUN ...                               the settings and figures in which runs differ
  tunesmith runs remove RUN                                        remove what a run wrote, and nothing else

`list` may be left out, and FOLDER is then this one. `tunesmith runs ACTION --help` explains an action."""
LONGEST = 44
"""Characters of a model's name or a value in a table."""


def run(argv: Sequence[str]) -> int:
    """Run one action; without one, list."""
    arguments = list(argv)
    if arguments and arguments[0] in ("--help", "-h"):
        say(named(USAGE))
        return 0
    actions: dict[str, Callable[[Sequence[str]], int]] = {"list": list_runs, "compare": compare, "remove": remove}
    if arguments and arguments[0] in actions:
        return actions[arguments[0]](arguments[1:])
    return list_runs(arguments)


def list_runs(argv: Sequence[str]) -> int:
    """``tunesmith runs list [FOLDER]``."""
    parser = VerbParser("runs list", "List the runs at and below a folder, the newest first.", takes_settings=False)
    parser.add_argument("folder", nargs="?", default=".", help="where to look (default: this folder)")
    parser.add_argument("--status", choices=STATUSES, help="only those")
    parser.add_argument("--sort", metavar="METRIC", help="best first: a metric, steps or seconds")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")
    options = parser.parse_all(argv)
    runs = find_runs(Path(options.folder), is_held)
    runs = sort_runs(runs, options.sort) if options.sort else runs
    shown = [each for each in runs if options.status in (None, each.status)]
    if options.json:
        say_json([each.to_dict() for each in shown])
    elif shown:
        rows = [_row(each, Path(options.folder), options.sort) for each in shown]
        say("\n".join(table([list(COLUMNS), *rows])))
    else:
        tell(f"no {options.status or ''} run at or below {options.folder}".replace("  ", " "))
    return 0


def compare(argv: Sequence[str]) -> int:
    """``tunesmith runs compare RUN RUN ...``."""
    parser = VerbParser("runs compare", "Show the settings and figures in which runs differ.", takes_settings=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, two or more")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    options = parser.parse_all(argv)
    if len(options.runs) < 2:
        raise ConfigError("one run differs from nothing", where="command line", remedy="name two runs or more")
    found = differences([summary_of(Path(name), is_held) for name in options.runs])
    if options.json:
        say_json({"runs": options.runs, **found})
        return 0
    lines = [["", *options.runs]]
    for part, rows in found.items():
        if rows:
            lines += [[f"[{part}]"], *([f"  {name}", *map(_value, values)] for name, values in rows.items())]
    say("\n".join(table(lines)) if len(lines) > 1 else "no difference")
    return 0


def remove(argv: Sequence[str]) -> int:
    """``tunesmith runs remove RUN``."""
    parser = VerbParser("runs remove", "Remove what a run wrote, and nothing else.", takes_settings=False)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print what was removed as JSON")
    options = parser.parse_all(argv)
    folder = Path(options.run)
    found = summary_of(folder, is_held)  # before anything is locked: this may be no run at all
    if found.status == "running":
        raise StorageError("it is running", where=str(folder), remedy="end it first")
    names = belongings.everything(folder)
    if not options.yes and not _agreed(found, names):
        tell("nothing was removed")
        return 0
    with held(folder):
        removed, left = remove_run(folder)
    if not left:
        with suppress(OSError):  # a link, or the folder that we are in
            folder.rmdir()
    if options.json:
        say_json({"folder": str(folder), "files": removed, "left": left})
        return 0
    if RECORD in left:
        tell(f"the run that it was to replace is in {folder} again")
    elif left:
        tell(f"left in {folder}, which no run wrote: {', '.join(map(one_line, left))}")
    say(f"removed {removed:,} files of {folder}")
    return 0


def _agreed(run: Listed, names: Sequence[str]) -> bool:
    """Whether the person at the terminal wants it gone.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask in", where="runs remove", remedy="--yes removes without asking")
    size = sum(path.lstat().st_size for path in (run.folder / name for name in names) if os.path.lexists(path))
    tell(f"remove the {run.status} run in {run.folder}: {len(names):,} files, {size / 1e6:,.1f} MB? [y/N]", always=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _row(run: Listed, top: Path, sorted_by: str | None) -> list[str]:
    """What a table shows of a run: the figure that it is sorted by, or its best."""
    name = run.folder.relative_to(top).as_posix() if run.folder != top else run.folder.absolute().name
    leading = run.leading()
    if sorted_by and sorted_by in run.metrics:
        leading = (sorted_by, run.metrics[sorted_by])
    return [
        name,
        run.status,
        _short(run.model or "-"),
        run.method,
        "-" if run.steps is None else f"{run.steps:,}",
        f"{leading[0]} {leading[1]:.4g}" if leading else "-",
        "-" if run.seconds is None else f"{run.seconds:,.0f}",
        _local(run.when),
    ]


def _local(when: str | None) -> str:
    """A time of a record in the clock of this machine, to the minute."""
    try:
        return datetime.fromisoformat(when or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return when or "-"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else _short(str(value))


def _short(text: str) -> str:
    """The end of a text, which tells paths and names apart."""
    return text if len(text) <= LONGEST else f"...{text[3 - LONGEST :]}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; a row may be shorter than the first."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(max(map(len, rows)))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
