"""Rows with a model's answers beside them, and the file that they become.

How a model answers is ``answering``'s. Rows are kept as they are, in their order.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.subject import find_subject
from tunesmith.report.folder import write_text

if TYPE_CHECKING:
    from tunesmith.evaluate.generate import Progress
    from tunesmith.evaluate.journal import Journal

STOPPED = "stopped"
"""Column that says whether a stop token ended the answer; false means that the length limit did."""
READ, READ_AS = "read", "read_as"
"""Columns of what the task read out of the answer, and by which of its rules."""


def predict(
    name: str | Path,
    rows: Sequence[Row],
    *,
    column: str = "output",
    reads: bool = False,
    settings: Sequence[str] = (),
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The values of every row, with the model's answer in ``column`` and whether it came to its end in ``stopped``.

    Args:
        name: run folder, checkpoint, adapter, model folder, hub name or ``nano-mistral``.
        rows: at least one.
        reads: add what the task reads out of each answer (``read``, ``read_as``).
        settings: settings as on a command line, see ``find_subject``.
        journal: keeps answers while others are generated; the caller removes it.
        progress: told how many answers are done.

    Raises:
        ConfigError: a setting is wrong, or the rows have a column of one of these names.
        DataError: a row cannot be asked, or cannot be written as JSON.
        ModelError: the model cannot be loaded as it was trained.
    """
    _check(rows, [column, STOPPED, *([READ, READ_AS] if reads else [])])
    answerer = Answerer(find_subject(name, settings))
    generations = answerer.answer(rows, journal=journal, progress=progress)
    made = [
        row.values | {column: generation.text, STOPPED: generation.stopped}
        for row, generation in zip(rows, generations, strict=True)
    ]
    if not reads:
        return made
    from tunesmith.evaluate.scoring import task_for, text_of

    builder = answerer.builder(rows[0])
    task = task_for(answerer.evaluation, builder, rows)
    answers = [task.read(text_of(generation.token_ids, builder, task)) for generation in generations]
    return [values | {READ: answer.value, READ_AS: answer.how} for values, answer in zip(made, answers, strict=True)]


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is generated, a file that could not be written in the end.

    Raises:
        ConfigError: the ending of its name says no format, or it is there already.
        StorageError: its folder is not there.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(
            f"{path.suffix or 'a name without an ending'} is no format of answers",
            where=str(path),
            remedy=f"end the name with {', '.join(WRITERS)}",
        )
    if path.exists() and not overwrite:
        raise ConfigError("is there already", where=str(path), remedy="name another file, or --overwrite")
    if not path.absolute().parent.is_dir():
        raise StorageError("no such folder", where=str(path.parent), remedy="make it first")


def write_predictions(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows at once, as JSON lines, a JSON array or CSV (RFC 4180), by the ending of the name.

    A killed process leaves the file that was there before, or none. In CSV the columns are those of all rows, in the
    order in which they first occur; a value that is no text is written as JSON, and a missing one is empty.

    Raises:
        StorageError: it cannot be written.
    """
    write_text(path, WRITERS[path.suffix.lower()](rows))


def json_lines(rows: Sequence[dict[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json_array(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


WRITERS = {".jsonl": json_lines, ".json": _json_array, ".csv": _csv}
"""Ending of a file's name -> its text."""


def _check(rows: Sequence[Row], columns: Sequence[str]) -> None:
    for row in rows:
        taken = [column for column in columns if column in row.values]
        if taken:
            raise ConfigError(
                f"the rows have a column {taken[0]} already",
                where=row.where,
                remedy="name another with --column" if taken[0] == columns[0] else "rename it in the data",
            )
        try:
            json.dumps(row.values)
        except (TypeError, ValueError) as error:
            raise DataError(f"a value cannot be written as JSON ({error})", where=row.where) from None
