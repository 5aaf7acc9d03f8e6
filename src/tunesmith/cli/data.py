"""``tunesmith data``: make rows over the embedded world, prepare fine-tuning files, download hub data sets."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.arguments import VerbParser
from tunesmith.cli.output import say, say_json
from tunesmith.errors import ConfigError, StorageError
from tunesmith.program import named

if TYPE_CHECKING:
    from tunesmith.data.prepare_nli import Select

USAGE = """usage: tunesmith data ACTION ...

  tunesmith data make nli|rag|reasoning DIR      rows over the embedded world
  tunesmith data prepare nli --output DIR ...    NLI fine-tuning files from a table, or from thoughts and reflections
  tunesmith data prepare rag FILE OUT ...        processed retrieval rows from questions, passages and answers
  tunesmith data download NAME DIR               a hub data set that the documents name, as JSON lines
  tunesmith data cache [--clear]                 tokenised data that is kept, or remove it

`tunesmith data ACTION --help` explains an action."""


def run(argv: Sequence[str]) -> int:
    """Run one action of the verb."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("--help", "-h"):
        say(named(USAGE))
        return 0
    action = arguments.pop(0)
    actions: dict[str, Callable[[Sequence[str]], int]] = {
        "make": make,
        "prepare": prepare,
        "download": download,
        "cache": cache,
    }
    if action not in actions:
        remedy = f"actions are {', '.join(actions)}"
        raise ConfigError(f"unknown action {action!r}", where="command line", remedy=remedy)
    return actions[action](arguments)


# make -----------------------------------------------------------------------------------------------------------------


def make(argv: Sequence[str]) -> int:
    """``tunesmith data make WHAT DIR``."""
    parser = VerbParser("data make", "Make rows over the embedded world.", takes_settings=False)
    parser.add_argument("what", choices=("nli", "rag", "reasoning"), help="task of the rows")
    parser.add_argument("folder", metavar="DIR", help="folder for the files")
    parser.add_argument("--num_train", type=_count, default=8000, metavar="N", help="training rows (8000)")
    parser.add_argument("--num_heldout", type=_count, default=400, metavar="N", help="held-out rows (400)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other rows (0)")
    _add_output_options(parser)
    options = _parse(parser, argv)
    makers = {"nli": _nli_files, "rag": _rag_files, "reasoning": _reasoning_files}
    files = makers[options.what](options.num_train, options.num_heldout, options.seed)
    written = _write(Path(options.folder), files, overwrite=options.overwrite)
    _report({"files": written}, as_json=options.json)
    return 0


def _nli_files(num_train: int, num_heldout: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Fine-tuning rows of both sides, the same rows without template, and what the ablations start from."""
    from tunesmith.data.nli import nli_text
    from tunesmith.synthetic.nli import make_nli, make_nli_thoughts, source_rows

    train, heldout = make_nli(num_train, num_heldout, seed)
    thoughts, reflections = make_nli_thoughts(num_train, seed=seed)

    def text_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = ("premise", "hypothesis", "thought_process", "predicted_label")
        return [{"id": row["id"], "text": nli_text(*(row[column] for column in columns))} for row in rows]

    return {
        "train_ft.jsonl": text_rows(train),
        "eval_ft.jsonl": text_rows(heldout),
        "train.jsonl": train,
        "heldout.jsonl": heldout,
        "thoughts.jsonl": thoughts,
        "reflections.jsonl": reflections,
        "source.csv": source_rows(train),
    }


def _rag_files(num_train: int, num_heldout: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    from tunesmith.synthetic.rag import make_rag

    train, heldout = make_rag(num_train, num_heldout, seed)
    return {"train.jsonl": train, "heldout.jsonl": heldout}


def _reasoning_files(num_train: int, num_heldout: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    from tunesmith.synthetic.reasoning import make_reasoning

    train, heldout = make_reasoning(num_train, num_heldout, seed)
    return {"train.jsonl": train, "heldout.jsonl": heldout}


# prepare --------------------------------------------------------------------------------------------------------------


def prepare(argv: Sequence[str]) -> int:
    """``tunesmith data prepare nli --output DIR``: train_ft.jsonl, eval_ft.jsonl, and prepared.json with the counts.

    ``tunesmith data prepare rag`` has options of its own.
    """
    if argv and argv[0] == "rag":
        from tunesmith.cli import prepare_rag

        return prepare_rag.run(argv[1:])
    options = _parse(_prepare_parser(), argv)
    select = _selection(options)
    folder = Path(options.output)
    names = ["train_ft.jsonl", "prepared.json", *([] if options.eval_file else ["eval_ft.jsonl"])]
    _refuse_existing(folder, names, overwrite=options.overwrite)
    from tunesmith.data.prepare_nli import prepare_nli

    prepared = prepare_nli(
        csv=options.csv,
        thoughts=options.thoughts,
        reflections=options.reflections,
        select=select,
        eval_share=options.eval_share,
        eval_file=options.eval_file,
        seed=options.seed,
    )
    files: dict[str, list[dict[str, Any]]] = {"train_ft.jsonl": prepared.train}
    if options.eval_file is None:
        files["eval_ft.jsonl"] = prepared.eval
    written = _write(folder, files, overwrite=options.overwrite)
    used = [name for name in (options.csv, options.thoughts, options.reflections, options.eval_file) if name]
    record = {
        "select": select,
        "seed": options.seed,
        "eval_share": None if options.eval_file else options.eval_share,
        "sources": {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in used if Path(name).is_file()},
        "counts": prepared.counts,
    }
    from tunesmith.report.folder import write_json

    write_json(folder / "prepared.json", record)
    _report({"counts": prepared.counts, "files": written}, as_json=options.json)
    return 0


def _prepare_parser() -> VerbParser:
    parser = VerbParser(
        "data prepare",
        "Make NLI fine-tuning files. No premise stands on both sides, and every selection from the same files and seed "
        "has the same held-out premises. Evaluation rows always carry true labels.",
        takes_settings=False,
    )
    parser.add_argument("what", choices=("nli",), help="task of the files")
    parser.add_argument("--csv", metavar="FILE", help="premise, hypothesis, label, thought_process or explanation_1..3")
    parser.add_argument("--thoughts", metavar="FILE", help="thought rows")
    parser.add_argument("--reflections", metavar="FILE", help="reflection rows")
    parser.add_argument(
        "--select",
        choices=("correct", "reflected", "all"),
        help="thoughts with the right label; these and the improved ones; every thought as it was written",
    )
    parser.add_argument("--eval_share", type=_share, default=0.1, metavar="X", help="share of premises held out (0.1)")
    parser.add_argument("--eval_file", metavar="FILE", help="evaluation rows that exist already; held out instead")
    parser.add_argument("--seed", type=int, default=42, help="decides which premises are held out (42)")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the files")
    _add_output_options(parser)
    return parser


def _selection(options: Any) -> Select:
    """Which thoughts are taken.

    Raises:
        ConfigError: the sources do not go together, or not with the selection.
    """
    if (options.csv is None) == (options.thoughts is None and options.reflections is None):
        raise ConfigError("give either --csv, or --thoughts and --reflections", where="command line")
    if options.csv is not None and options.select is not None:
        raise ConfigError("--select chooses among thoughts; a table has none to choose", where="command line")
    select: Select = options.select or ("all" if options.csv else "reflected" if options.reflections else "correct")
    if select == "reflected" and options.reflections is None:
        raise ConfigError("--select reflected needs --reflections", where="command line")
    return select


# download -------------------------------------------------------------------------------------------------------------


def download(argv: Sequence[str]) -> int:
    """``tunesmith data download NAME DIR``: one JSON lines file for each split."""
    from tunesmith.cli import environment
    from tunesmith.data.download import DATA_SETS, find, splits

    known = ", ".join(f"{name} ({data.repository})" for name, data in DATA_SETS.items())
    parser = VerbParser("data download", f"Download a data set: {known}.", takes_settings=False)
    parser.add_argument("name", help="short name of the data set")
    parser.add_argument("folder", metavar="DIR", help="folder for the files")
    _add_output_options(parser)
    options = _parse(parser, argv)
    data = find(options.name)
    environment.prepare()
    files = {f"{split}.jsonl": rows for split, rows in splits(data).items()}
    written = _write(Path(options.folder), files, overwrite=options.overwrite)
    _report({"files": written}, as_json=options.json)
    return 0


def download_main(default_folder: str | Path, argv: Sequence[str] | None = None) -> int:
    """The door of a recipe's ``download_data.py``: NAME (esnli when left out) into a folder beside the script."""
    import sys

    from tunesmith.cli.main import guarded

    arguments = list(sys.argv[1:] if argv is None else argv)
    names = [argument for argument in arguments if not argument.startswith("-")]
    if not names:
        arguments.insert(0, "esnli")
        names = ["esnli"]
    if len(names) == 1 and "--help" not in arguments:
        arguments.insert(arguments.index(names[0]) + 1, str(Path(default_folder) / names[0]))
    return guarded(lambda: download(arguments), debug="--debug" in arguments)


# cache ----------------------------------------------------------------------------------------------------------------


def cache(argv: Sequence[str]) -> int:
    """``tunesmith data cache``: what is kept, the newest first; with ``--clear`` all of it is removed."""
    from tunesmith.data.cache import cache_folder, clear, entries

    parser = VerbParser("data cache", "List tokenised data that earlier runs kept, or remove it.", takes_settings=False)
    parser.add_argument("--clear", action="store_true", help="remove everything that is kept")
    parser.add_argument("--cache_dir", metavar="DIR", help="folder (TUNESMITH_CACHE, else the user's cache folder)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    options = _parse(parser, argv)
    folder = Path(options.cache_dir).expanduser() if options.cache_dir else cache_folder()
    if options.clear:
        removed, num_bytes = clear(folder)
        result: dict[str, Any] = {"folder": str(folder), "removed": removed, "bytes": num_bytes}
        if options.json:
            say_json(result, None)
        else:
            say(f"{folder}: {removed} removed, {_megabytes(num_bytes)}")
        return 0
    kept = [
        {
            "folder": str(entry.folder),
            "bytes": entry.num_bytes,
            "train_data": entry.about["source"],
            "examples": sum(entry.about["examples"]),
        }
        for entry in entries(folder)
    ]
    if options.json:
        say_json({"folder": str(folder), "kept": kept}, None)
        return 0
    for entry in kept:
        size = _megabytes(entry["bytes"])
        say(f"{Path(entry['folder']).name[:17]}  {entry['examples']:>9,} examples  {size:>10}  {entry['train_data']}")
    total = _megabytes(sum(entry["bytes"] for entry in kept))
    say(f"{folder}: {len(kept)} kept, {total}")
    return 0


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


# shared ---------------------------------------------------------------------------------------------------------------


def _add_output_options(parser: VerbParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def _parse(parser: VerbParser, argv: Sequence[str]) -> Any:
    options, settings = parser.split(argv)
    if settings:
        remedy = named(f"`{parser.prog} --help` explains")
        raise ConfigError(f"do not know what to do with {settings[0]!r}", where="command line", remedy=remedy)
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise ValueError
    return number


def _refuse_existing(folder: Path, names: Iterable[str], *, overwrite: bool) -> None:
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise StorageError(
            f"{', '.join(there)} exist already", where=str(folder), remedy="give another folder, or --overwrite"
        )


def _write(folder: Path, files: dict[str, Any], *, overwrite: bool) -> dict[str, int]:
    """Write every file that has rows; returns path -> number of rows."""
    from tunesmith.report.folder import write_jsonl, write_text

    _refuse_existing(folder, files, overwrite=overwrite)
    written = {}
    for name, rows in files.items():
        rows = list(rows)
        if name.endswith(".csv"):
            write_text(folder / name, _csv(rows))
        else:
            write_jsonl(folder / name, rows)
        written[str(folder / name)] = len(rows)
    return written


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _report(facts: dict[str, dict[str, int]], *, as_json: bool) -> None:
    if as_json:
        say_json(facts)
        return
    for group in facts.values():
        for name, number in group.items():
            say(f"{number:>9,}  {name}")
