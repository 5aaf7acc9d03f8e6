"""``tunesmith push``: a finished model to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say, say_json, tell
from tunesmith.export.token import hub_token
from tunesmith.model.source import check_one_kind
from tunesmith.report.belongings import check_finished


def run(argv: Sequence[str]) -> int:
    """Upload the model, tokenizer, card and proof of a run or merged model; never data, checkpoints or logs."""
    parser = VerbParser("push", "Upload a finished model to the hub; HF_TOKEN must be set.", takes_settings=False)
    parser.add_argument("run", help="run folder, or merged model")
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("--base_model", help="name on the hub of the base, where the run has a folder's name for it")
    parser.add_argument("--public", action="store_true", help="let everybody see it; private when left out")
    parser.add_argument("--dry_run", action="store_true", help="list what would go up, and send nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_all(argv)
    environment.prepare()
    early.check_source_folder(options.run)
    check_finished(Path(options.run))
    check_one_kind(Path(options.run))
    if not options.dry_run:
        hub_token(options.repository, "set HF_TOKEN, here or in .env; --dry_run lists what would go up")
    from tunesmith.export.hub import push, uploads

    files = uploads(options.run, base_model=options.base_model)
    listed = [{"path": file.path, "bytes": file.size} for file in files]
    address = None if options.dry_run else push(options.run, options.repository, files, private=not options.public)
    if options.json:
        say_json({"repository": options.repository, "address": address, "files": listed})
        return 0
    for file in files:
        tell(f"{file.size:>14,} {file.path}")
    seen = "everybody can see" if options.public else "is private"
    say(address or f"{options.repository}: nothing was sent; the repository {seen}")
    return 0
