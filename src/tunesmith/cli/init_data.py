"""``tunesmith init --data FILE DIR``: a first configuration for somebody's own rows, and the commands to type next.

The data stays where it is, and nothing that exists is overwritten. What rows hold is guessed in ``data/guess.py``, the
settings are chosen in ``train/proposal.py``; here is what is asked, written and said.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli import environment
from tunesmith.cli.output import say, tell
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.imports import lean_imports
from tunesmith.program import command

if TYPE_CHECKING:
    from tunesmith.data.row import Row
    from tunesmith.train.proposal import Item

CONFIG = "config.yaml"
EMBEDDED = "nano-mistral"
NOT_A_FILE = "name a CSV, TSV, JSONL, JSON or Parquet file, or a folder of them"


def run(
    data: str, folder: Path, *, prompt: str | None = None, answer: str | None = None, model: str | None = None,
    ask: bool = False,
) -> int:  # fmt: skip
    """Look at ``data``, write ``folder/config.yaml`` and check it; returns the exit code.

    Args:
        data: a local file or folder of rows.
        folder: where the configuration goes; it may hold other things.
        prompt: the column that is asked; None guesses it.
        answer: the column that is answered; None guesses it.
        model: the model to train; None is the one inside the package.
        ask: let whoever sits at the terminal confirm what was guessed.

    Raises:
        ConfigError: a column that is named is not there.
        DataError: the file cannot be read, or its columns say nothing.
        ModelError: the model cannot be found.
        StorageError: the configuration is there already, or cannot be written.
    """
    file = folder / CONFIG
    check_free(file)
    rows = look_at(data)
    if ask:
        prompt, answer, model = _asked(rows, prompt, answer, model)
    environment.prepare()
    items = proposal(rows, os.path.relpath(data, folder), prompt, answer, model or EMBEDDED)
    write(file, render(items, Path(data).name))
    tell("\n".join([f"{file}:", *(f"  {item.name} {_short(item.value)}: {item.why}" for item in items if item.why)]))
    code = _check(folder)
    if not code:
        judged = any(item.section == "evaluation" for item in items)
        say("\n".join(next_commands(folder, judged=judged)))
    return code


def check_free(file: Path) -> None:
    """Refuse to write over a file.

    Raises:
        StorageError: it is there, or its folder is no folder.
    """
    if file.exists() or file.is_symlink():
        raise StorageError("is there already", where=str(file), remedy="name another folder, or move the file away")
    if file.parent.exists() and not file.parent.is_dir():
        raise StorageError("is no folder", where=str(file.parent), remedy="name a new folder")


def look_at(data: str) -> list[Row]:
    """The rows of a local file or folder.

    Raises:
        DataError: it is not there, cannot be read, or holds no rows.
    """
    from tunesmith.data.rows import read_rows

    if not Path(data).exists():
        raise DataError("there is no such file", where=data, remedy=NOT_A_FILE)
    return read_rows(data)


def proposal(rows: Sequence[Row], data: str, prompt: str | None, answer: str | None, model: str) -> list[Item]:
    """The proposed settings of rows that lie in ``data``, seen from where the configuration goes."""
    from tunesmith.config.schema import ModelSection
    from tunesmith.data.guess import guess_shape

    with lean_imports():
        from tunesmith.model.tokenizer import load_tokenizer
        from tunesmith.train.proposal import facts_of, measure, propose

    shape = guess_shape(rows, prompt, answer)
    section = ModelSection(model_name_or_path=model)
    tokenizer = load_tokenizer(section)
    size, positions = facts_of(section)
    measured = measure(rows, shape, tokenizer)
    return propose(rows, shape, measured, data=data, model=model, size=size, positions=positions)


# questions ------------------------------------------------------------------------------------------------------------


def _asked(
    rows: Sequence[Row], prompt: str | None, answer: str | None, model: str | None
) -> tuple[str | None, str | None, str | None]:
    """What flags left open, asked with the guess as the answer that Enter gives: at most three questions."""
    from tunesmith.data.guess import columns_of, guess_shape, proposed_pair

    columns = columns_of(rows)
    names = [column.name for column in columns]
    try:
        paired = guess_shape(rows, prompt, answer).answer is not None
    except DataError:
        paired = True
    if paired:
        asked, answered = proposed_pair(columns)
        prompt = prompt or _column(f"Which column is the question? ({', '.join(names)})", names, asked)
        answer = answer or _column("Which column is the answer?", names, answered)
    return prompt, answer, model or _ask("Which model? (a folder, or a name on the hub)", EMBEDDED)


def _column(question: str, names: Sequence[str], guess: str | None) -> str | None:
    """A column's name, or None where the guess, which may take several columns, is what is wanted."""
    said = _ask(question, guess)
    if said is not None and said not in names:
        raise ConfigError(f"there is no column {said!r}", where="question", remedy=f"there are {', '.join(names)}")
    return None if said == guess else said


def _ask(question: str, default: str | None) -> str | None:
    tell(question if default is None else f"{question} [{default}]", always=True)
    return sys.stdin.readline().strip() or default


# the file -------------------------------------------------------------------------------------------------------------


def render(items: Sequence[Item], source: str) -> str:
    """The text of a configuration file in sections, each setting with its reason."""
    lines = [f"# How to fine-tune a model on {' '.join(source.split())}, proposed by `tunesmith init --data`."]
    lines.append(
        "# Change what you like: `tunesmith config --list` names all settings, `tunesmith check` looks at them."
    )
    for section, inside in groupby(items, key=lambda item: item.section):
        lines += ["", f"{section}:", *(_line(item) for item in inside)]
    return "\n".join(lines) + "\n"


def _line(item: Item) -> str:
    """A setting on its line, or one that holds others (``lora_config``) as a block."""
    text = f"  {item.name}: {json.dumps(item.value, ensure_ascii=False)}"
    if item.name == "lora_config":
        text = f"  {item.name}:"
    said = f"{text:<40}  # {' '.join(item.why.split())}" if item.why else text
    inner = item.value.items() if item.name == "lora_config" else ()
    return "\n".join([said, *(f"    {name}: {json.dumps(value)}" for name, value in inner)])


def write(file: Path, text: str) -> None:
    """Write a new file.

    Raises:
        StorageError: it is there already, or cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        check_free(file)
        raise
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(file)) from error


def _check(folder: Path) -> int:
    """Check the configuration as ``tunesmith check`` does there; what is wrong is said."""
    from tunesmith.config.load import load
    from tunesmith.train.check import check

    with contextlib.chdir(folder):
        report = check(load(CONFIG, []))
    for problem in report.problems:
        for line in problem.lines():
            tell(f"error: {line}", always=True)
    if report.problems:
        tell(f"{folder / CONFIG} is written, and does not pass the check; correct the rows or the file")
    return report.exit_code


def next_commands(folder: Path, *, judged: bool) -> list[str]:
    """What to type next, in the order in which it makes sense."""

    def typed(*words: str) -> str:
        return command("tunesmith", *words, seen_from=folder.resolve())

    judge = [typed("evaluate", "run", "--baseline")] if judged else []
    move = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    return [
        *move,
        typed("check", CONFIG),
        typed("preview", CONFIG, "--num", "1"),
        typed("train", CONFIG),
        *judge,
        typed("merge", "run", "merged"),
        typed("chat", "merged"),
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
