"""``tunesmith predict``: a model's answer beside every row of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import STREAM, VerbParser
from tunesmith.cli.output import say_json, tell
from tunesmith.imports import lean_imports

UNFINISHED = ".unfinished.jsonl"
"""Added to the output's name: answers of a prediction that is still running, or was interrupted."""


def run(argv: Sequence[str]) -> int:
    """Answer every row of a file; a prediction that was interrupted goes on where it was."""
    parser = VerbParser("predict", "Write a model's answer beside every row of a file. Interrupted, it goes on.")
    parser.add_argument("model", help="run folder, checkpoint, adapter, model folder, hub name or nano-mistral")
    parser.add_argument("input", help="rows: a file, folder or URL; - reads JSON lines from standard input")
    parser.add_argument("output", help="new file: .jsonl, .json or .csv; - writes JSON lines to standard output")
    parser.add_argument("--column", default="output", help="name of the column with the answers (output)")
    parser.add_argument("--read", action="store_true", help="add what the task reads out of each answer")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    options, settings = parser.split(argv)
    from tunesmith.data.rows import iter_rows, stream_rows

    with lean_imports():
        from tunesmith.evaluate.predict import check_output, predict, write_predictions

    output = None if options.output == STREAM else Path(options.output)
    if output is not None:
        check_output(output, overwrite=options.overwrite)
    read = stream_rows(sys.stdin.buffer) if options.input == STREAM else iter_rows(options.input)
    rows = list(read)
    environment.prepare()
    early.check_named(options.model)
    from tunesmith.cli.progress import follow
    from tunesmith.evaluate.journal import Journal

    journal = None if output is None else Journal(output.with_name(output.name + UNFINISHED))
    with follow("answers") as on_progress:
        made = predict(
            options.model,
            rows,
            column=options.column,
            reads=options.read,
            settings=settings,
            journal=journal,
            progress=on_progress,
        )
    if output is None or journal is None:
        for values in made:
            say_json(values, None)
        return 0
    write_predictions(output, made)
    journal.remove()
    tell(f"{len(made):,} answers: {output}")
    return 0
