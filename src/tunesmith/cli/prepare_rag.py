"""``tunesmith data prepare rag``: processed retrieval rows from questions, passages and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say, say_json
from tunesmith.errors import ConfigError, StorageError


def run(argv: Sequence[str]) -> int:
    """Write one JSON lines file and say how many rows of which kind it holds."""
    parser = VerbParser(
        "data prepare rag",
        "Make processed retrieval rows from rows of `data make rag`, SQuAD, HotpotQA, PubMedQA or ALCE.",
        takes_settings=False,
    )
    parser.add_argument("source", metavar="FILE", help="questions with passages and answers")
    parser.add_argument("output", metavar="OUT", help="JSON lines file to write")
    parser.add_argument("--prompt", metavar="FILE", help="prompt file with {question} and {context}")
    parser.add_argument("--num_passages", type=int, default=5, metavar="K", help="passages in a prompt (5)")
    parser.add_argument("--distractor_share", type=float, metavar="X", help="share of them that does not answer")
    parser.add_argument("--without_positive", type=float, default=0.0, metavar="X", help="rows without positives (0)")
    parser.add_argument("--cot", action="store_true", help="add generated_answer: a cited reason and the answer")
    parser.add_argument("--seed", type=int, default=42, help="decides the order of passages and every choice (42)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options, rest = parser.split(argv)
    if rest:
        raise ConfigError(f"do not know what to do with {rest[0]!r}", where="command line", remedy="--help explains")
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise StorageError("exists already", where=str(output), remedy="give another name, or --overwrite")
    from tunesmith.data.prepare_rag import PROMPT, prepare_rag
    from tunesmith.data.template_files import read_text
    from tunesmith.report.folder import write_jsonl

    prepared = prepare_rag(
        options.source,
        prompt=PROMPT if options.prompt is None else read_text(options.prompt, "prompt"),
        num_passages=options.num_passages,
        distractor_share=options.distractor_share,
        without_positive=options.without_positive,
        chain_of_thought=options.cot,
        seed=options.seed,
    )
    write_jsonl(output, prepared.rows)
    if options.json:
        say_json({"counts": prepared.counts, "files": {str(output): len(prepared.rows)}})
    else:
        for name, number in {**prepared.counts, str(output): len(prepared.rows)}.items():
            say(f"{number:>9,}  {name}")
    return 0
