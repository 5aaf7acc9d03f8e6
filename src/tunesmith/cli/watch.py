"""``tunesmith watch``: the page of a run in a browser of this machine, kept up to date while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say_piece, tell

PORT = 7007


def run(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C ends it, and say where it is."""
    parser = VerbParser(
        "watch",
        "Show the page of a run in a browser of this machine, and keep it up to date while the run goes on. Nothing is "
        "written, and no other machine can ask; Ctrl-C ends it.",
        takes_settings=False,
    )
    parser.add_argument("run", help="run folder, of a run under way or ended")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on ({PORT}); 0 takes any free one")
    options = parser.parse_all(argv)
    from tunesmith.launch.page_server import PageServer
    from tunesmith.report.record import read_facts

    folder = Path(options.run)
    read_facts(folder)
    with PageServer(options.port) as server:
        environment.prepare()
        from tunesmith.report.live import LivePage
        from tunesmith.report.told import status_now
        from tunesmith.train.lock import is_held

        server.source = LivePage(folder, status_now(is_held))
        say_piece(f"{server.address}\n")  # at once, also into a pipe
        tell("Ctrl-C ends it; the run goes on without it")
        server.serve_forever()
    return 0
