"""``tunesmith config``: the settings of a run, resolved and checked, with the origin of each value."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.cli.arguments import VerbParser, of_a_run
from tunesmith.cli.output import say, say_file, say_json, tell
from tunesmith.config import describe
from tunesmith.config.coming_from.tool import left_lines
from tunesmith.config.convert import convert
from tunesmith.config.draft import Draft
from tunesmith.config.load import DIALECTS, READERS, read, resolve_draft


def run(argv: Sequence[str]) -> int:
    """Show a configuration, the list of settings or the JSON schema."""
    parser = VerbParser(
        "config",
        "Resolve and check a configuration file and show every value with its origin.",
        help_ends=of_a_run("config"),
    )
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), help="dialect of the file; detected when left out")
    parser.add_argument("--json", action="store_true", help='print {"values": {...}, "origins": {...}}')
    parser.add_argument("--written", action="store_true", help="show only what somebody wrote")
    parser.add_argument("--list", action="store_true", help="list every setting with its default and meaning")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema")
    parser.add_argument("--to", choices=list(READERS), help="write the configuration in this dialect")
    options, settings = parser.split(argv)
    if options.schema:
        say_json(describe.json_schema())
        return 0
    if options.list:
        for path, default, meaning, others in describe.reference():
            also = f" (also: {', '.join(others)})" if others else ""
            say(f"{path} = {default}\n    {meaning}{also}")
        return 0
    draft = read(options.file, options.dialect) if options.file else Draft("command line", ())
    resolved = resolve_draft(draft, settings)
    left = left_lines(draft)
    for line in left:
        tell(line)
    if options.to:
        source = " ".join([options.file or "the command line", *settings])
        text = convert(resolved, options.to, source)
        comments = "" if options.to == "json" else "".join(f"# {line}\n" for line in left)
        say_file(comments + text)
    elif options.json:
        say_json(describe.as_json(resolved))
    else:
        say("\n".join(describe.table(resolved, only_written=options.written)))
    return 0
