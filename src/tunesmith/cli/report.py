"""``tunesmith report``: what a run did, or how several differ, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say


def run(argv: Sequence[str]) -> int:
    """Write the page and print where it is."""
    parser = VerbParser(
        "report",
        "Write one self-contained page about a run (finished, stopped or under way), or about several side by side.",
        takes_settings=False,
    )
    parser.add_argument("run", nargs="+", help="run folder; of several, what differs is marked")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page; RUN/report.html when left out, and report.html in this folder for several runs",
    )
    options = parser.parse_all(argv)
    environment.prepare()
    from tunesmith.report.page import write_report
    from tunesmith.report.told import status_now
    from tunesmith.train.lock import is_held

    output = Path(options.output) if options.output is not None else None
    say(str(write_report([Path(folder) for folder in options.run], output, status_of=status_now(is_held))))
    return 0
