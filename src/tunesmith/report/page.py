"""``report.html``: one page that tells whoever was not there what a run did, or how several runs differ.

The page needs no network and runs no script. Every text on it, wherever it comes from, loses its secrets, has what
steers or hides shown, and is escaped, at the one place where the template writes a value.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from tunesmith import __version__
from tunesmith.config.draft import shown
from tunesmith.config.recorded import STARTED_IN
from tunesmith.errors import ConfigError, StorageError
from tunesmith.notices import notify
from tunesmith.report import page_tables as tables
from tunesmith.report.belongings import add_files
from tunesmith.report.folder import write_text
from tunesmith.report.page_curves import Curve, curves
from tunesmith.report.page_facts import Run, read_run
from tunesmith.report.record import now
from tunesmith.report.templates import environment
from tunesmith.report.told import StatusOf, mapping, recorded_status, text_of
from tunesmith.secrets import redactor
from tunesmith.visible import visible

REPORT = "report.html"
TEMPLATE = "page.html.jinja"
_MARK = '<meta name="generator" content="tunesmith report">'
"""By which a page of ours is known."""


def write_report(folders: Sequence[Path], output: Path | None = None, *, status_of: StatusOf = recorded_status) -> Path:
    """Write the page of one run, or of several side by side.

    Args:
        folders: the run folders, of runs in any state.
        output: the file; ``report.html`` in the folder of a single run, in the working directory for several.
        status_of: what became of each, by its record.

    Returns:
        The file.

    Raises:
        ConfigError: a run is named twice.
        StorageError: a folder holds no run, the file is somebody else's, or it cannot be written.
    """
    file = output or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    _check_replaceable(file)
    text = render([read_run(folder, name, status_of) for folder, name in zip(folders, _names(folders), strict=True)])
    write_text(file, text)
    for folder in folders:
        if file.absolute() == (folder / REPORT).absolute():
            add_files(folder, folder / REPORT)
    return file


def refresh_report(folder: Path, *, status_of: StatusOf = recorded_status) -> None:
    """Write the page of a run anew, beside a result that must not be lost because its page is."""
    try:
        write_report([folder], status_of=status_of)
    except Exception as error:
        notify(f"{REPORT} could not be written ({type(error).__name__}: {error})")


def render(runs: Sequence[Run]) -> str:
    """The whole page."""
    drawn, undrawn = _curves(runs)
    return _template().render(
        runs=runs,
        overview=tables.overview(runs),
        settings=tables.settings(runs),
        figures=tables.figures(runs),
        versions=tables.versions(runs),
        curves=drawn,
        undrawn=undrawn,
        commands=[_again(run) for run in runs],
        same_rows=_judged_alike(runs),
        tables=tables,
        mapping=mapping,
        written=now().replace("T", " ").replace("+00:00", " UTC"),
        version=__version__,
        redact=redactor(),
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    templates = environment("tunesmith", "report", autoescape=True, finalize=_harmless)
    templates.filters["text"] = text_of
    return templates.get_template(TEMPLATE)


@pass_context
def _harmless(context: Context, value: Any) -> Any:
    """What the template is about to write, before it is escaped; markup of ours stays."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(context["redact"](value)) if is_text else value


def _names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, with as much of the way to it as tells it from the others.

    Raises:
        ConfigError: a run is named twice.
    """
    ways = [folder.resolve().parts for folder in folders]
    twice = next((folder for folder, way in zip(folders, ways, strict=True) if ways.count(way) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is named twice", where="command line")
    for length in range(1, max(map(len, ways)) + 1):
        names = ["/".join(way[-length:]) for way in ways]
        if len(set(names)) == len(names):
            break
    return names


def _curves(runs: Sequence[Run]) -> tuple[list[Curve], str]:
    """The curves, and why there are none; a page is not lost because a picture is."""
    try:
        return curves(runs), ""
    except Exception as error:  # a log may hold anything, and none of it concerns the rest
        return [], f"The curves could not be drawn ({type(error).__name__}: {error})."


def _again(run: Run) -> str:
    """The command that started the run, after the way to where it was started."""
    command = run.facts.get("command")
    if not isinstance(command, str) or not command:
        return ""
    start = run.facts.get(STARTED_IN)
    if not isinstance(start, str):
        return command
    place = (run.folder.resolve() / start).resolve()
    return command if place == Path.cwd() else f"cd {shlex.quote(shown(place))}\n{command}"


def _judged_alike(runs: Sequence[Run]) -> bool:
    """Whether the evaluations of the runs, as far as there are some, asked the same rows."""
    asked = [set(run.answers.by_row) for run in runs if run.answers.total]
    return all(rows == asked[0] for rows in asked)


def _check_replaceable(file: Path) -> None:
    """Refuse to put a page into the place of anything but a page of ours.

    Raises:
        StorageError: something else is there.
    """
    if not file.exists() and not file.is_symlink():
        return
    try:
        is_ours = file.is_file() and _MARK.encode() in file.open("rb").read(1_000)
    except OSError:
        is_ours = False
    if not is_ours:
        raise StorageError(
            "is there already and is no report of ours", where=str(file), remedy="name another file (--output FILE)"
        )
