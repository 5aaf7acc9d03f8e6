"""The tables of a report page: one row a thing, one cell a run, and whether the runs differ in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tunesmith.config.draft import DEFAULT
from tunesmith.config.resolve import schema_defaults
from tunesmith.report.page_facts import Answer, Run
from tunesmith.report.told import mapping, number, text_of

SHOWN_ANSWERS = 12
"""Of the right ones, of the wrong ones, and of those in which runs differ twice as many."""
SHOWN_ROWS = 10
"""Addresses of rows that a remark of the ledger names."""
_NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table says of one run; ``span`` is value, low and high of a share, for its bar."""

    text: str
    note: str = ""
    span: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table with a cell for each run."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs do not all say the same."""
        return len({cell.text for cell in self.cells}) > 1

    @property
    def empty(self) -> bool:
        """Whether no run says anything."""
        return all(cell.text == _NOTHING for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of the rows of a run: one line a source, remarks, and how long the rows are."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    lengths: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix: counts with their share of the row, the right ones marked."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float, bool], ...]], ...]


LEDGER_HEAD = ("source", "read", "kept", "cut", "dropped", "tokens", "trained", "median", "longest")


def overview(runs: Sequence[Run]) -> Table:
    """What each run is and what it came to."""
    facts: tuple[tuple[str, Callable[[Run], str]], ...] = (
        ("status", lambda run: run.status),
        ("model", lambda run: _said(run.part("model"), "name")),
        ("trained weights", _trained),
        ("how it is held", lambda run: _said(run.part("model"), "held")),
        ("training rows", lambda run: _count(run.part("data").get("train_rows"))),
        ("evaluation rows", lambda run: _count(run.part("data").get("eval_rows"))),
        ("tokens", lambda run: _count(run.part("data").get("train_tokens"))),
        ("tokens trained", lambda run: _share(run.part("data").get("trained_share"))),
        ("steps", _steps),
        ("rows in a step", lambda run: _count(run.part("plan").get("global_batch_size"))),
        ("batching", lambda run: _said(mapping(run.facts.get("layout")), "batching")),
        ("device", lambda run: _said(run.part("model"), "device")),
        ("computed in", lambda run: _said(run.part("model"), "precision")),
        ("processes", lambda run: _count(run.part("plan").get("num_processes"))),
        ("seed", lambda run: _said(mapping(run.facts.get("seeds")), "seed")),
        ("started", lambda run: _time(run.facts.get("started"))),
        ("took", _took),
        ("last training loss", lambda run: _last(run, "loss")),
        ("last evaluation loss", lambda run: _last(run, "eval_loss")),
        ("best evaluation", _best),
    )
    rows = (Row(name, tuple(Cell(tell(run)) for run in runs)) for name, tell in facts)
    return Table("The run" if len(runs) == 1 else "The runs", tuple(row for row in rows if not row.empty))


def tiles(run: Run) -> list[tuple[str, Cell]]:
    """What a reader wants to know first: the figures that have an interval, and how far training came."""
    rows = [(row.name, row.cells[0]) for row in figures([run]).rows]
    judged = _count(run.figures.get("num_examples"))
    found = [(name, Cell(cell.text, f"{cell.note} (95%)")) for name, cell in rows if cell.note] or [
        (name, Cell(cell.text)) for name, cell in rows[:1]
    ]
    if found:
        found.append(("rows judged", Cell(judged, run.judged)))
    reached = (("last training loss", _last(run, "loss")), ("last evaluation loss", _last(run, "eval_loss")))
    found += [(name, Cell(text)) for name, text in reached if text != _NOTHING]
    return [*found, ("steps", Cell(_steps(run), _took(run) if _took(run) != _NOTHING else ""))]


def settings(runs: Sequence[Run]) -> list[Table]:
    """Every setting with its origin: what differs between runs, what somebody set or is not the default, the rest."""
    defaults = {path: _plain(value) for path, value in schema_defaults().items()}
    differing, told, rest = [], [], []
    for path in dict.fromkeys(path for run in runs for path in run.settings):
        row = Row(path, tuple(_setting(run, path) for run in runs))
        changed = any(_plain(run.settings.get(path)) != defaults.get(path) for run in runs)
        written = any(not run.origins.get(path, DEFAULT).startswith(DEFAULT) for run in runs)
        if row.differs:
            differing.append(row)
        elif changed or written:
            told.append((not changed, row))
        else:
            rest.append(row)
    told.sort(key=lambda entry: entry[0])
    tables = [
        Table("In which the runs differ", tuple(differing)),
        Table("Set, or other than the default", tuple(row for _, row in told)),
        Table("Defaults", tuple(rest)),
    ]
    return [table for table in tables if table.rows]


def versions(runs: Sequence[Run]) -> Table:
    """What ran."""
    names = dict.fromkeys(name for run in runs for name in run.part("versions"))
    return Table(
        "Versions",
        tuple(Row(name, tuple(Cell(_said(run.part("versions"), name)) for run in runs)) for name in names),
    )


def figures(runs: Sequence[Run]) -> Table:
    """The figures of evaluations with their 95% intervals, the main one first."""
    names = dict.fromkeys(
        [text_of(run.figures["main_metric"]) for run in runs if "main_metric" in run.figures]
        + [name for run in runs for name, value in run.figures.items() if number(value) is not None]
    )
    rows = (Row(name, tuple(_figure(run, name) for run in runs)) for name in names if name != "num_examples")
    return Table("Figures", tuple(row for row in rows if not row.empty))


def per_class(run: Run) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Kind, head and rows of the figures by class or by field."""
    found = []
    for kind in ("class", "field"):
        by_name = {name: mapping(one) for name, one in mapping(run.figures.get(f"per_{kind}")).items()}
        head = list(dict.fromkeys(key for one in by_name.values() for key in one))
        if head:
            rows = [(name, [_short(one.get(key)) for key in head]) for name, one in by_name.items()]
            found.append((kind, head, rows))
    return found


def matrix(run: Run) -> Matrix | None:
    """The confusion matrix; None where there is none of a shape that can be shown."""
    told = mapping(run.figures.get("confusion_matrix"))
    labels, columns, counts = (told.get(name) for name in ("labels", "columns", "counts"))
    if not (isinstance(labels, list) and isinstance(columns, list) and isinstance(counts, list)):
        return None
    if len(labels) != len(counts) or not labels or not all(_are_counts(line, len(columns)) for line in counts):
        return None
    rows = []
    for place, (label, line) in enumerate(zip(labels, counts, strict=True)):
        total = max(sum(line), 1)
        rows.append((text_of(label), tuple((count, count / total, place == at) for at, count in enumerate(line))))
    return Matrix(tuple(map(text_of, columns)), tuple(rows))


def ledgers(run: Run) -> list[Ledger]:
    """The accounts of a run's training and evaluation rows."""
    names = {"training": "Rows to train on", "evaluation": "Rows held out"}
    parts = [(title, mapping(run.ledger.get(name))) for name, title in names.items()]
    return [_ledger(title, part) for title, part in parts if part]


def right_and_wrong(run: Run) -> tuple[list[Answer], list[Answer]]:
    """The first answers of a run that are wrong, and the first that are right."""
    answers = list(run.answers.by_row.values())
    wrong = [answer for answer in answers if not answer.correct]
    return wrong[:SHOWN_ANSWERS], [answer for answer in answers if answer.correct][:SHOWN_ANSWERS]


def side_by_side(runs: Sequence[Run]) -> list[tuple[bool, list[Answer | None]]]:
    """Answers of several runs to the same rows, with whether the runs differ in being right: those first, then where
    all are wrong, then where all are right."""
    sources = dict.fromkeys(source for run in runs for source in run.answers.by_row)
    rows = [[run.answers.by_row.get(source) for run in runs] for source in sources]
    judged = [({answer.correct for answer in row if answer}, row) for row in rows]
    judged.sort(key=lambda entry: (len(entry[0]) < 2, entry[0] == {True}))
    return [(len(correct) > 1, row) for correct, row in judged[: 2 * SHOWN_ANSWERS]]


# cells ---


def _setting(run: Run, path: str) -> Cell:
    if path not in run.settings:
        return Cell(_NOTHING)
    return Cell(text_of(run.settings[path]), run.origins.get(path, DEFAULT))


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _figure(run: Run, name: str) -> Cell:
    value = number(run.figures.get(name))
    if value is None:
        return Cell(_NOTHING)
    interval = mapping(run.figures.get("confidence")).get(name)
    ends = [number(end) for end in interval] if isinstance(interval, list) and len(interval) == 2 else [None, None]
    low, high = ends
    if low is None or high is None:
        return Cell(_short(value), "", (value, value, value) if name == run.figures.get("main_metric") else None)
    is_share = 0 <= low <= high <= 1 and 0 <= value <= 1
    return Cell(_short(value), f"{_short(low)} to {_short(high)}", (value, low, high) if is_share else None)


def _said(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    return _NOTHING if value is None else text_of(value)


def _count(value: Any) -> str:
    found = number(value)
    return _NOTHING if found is None else f"{found:,.0f}"


def _share(value: Any) -> str:
    found = number(value)
    return _NOTHING if found is None else f"{found:.1%}"


def _short(value: Any) -> str:
    found = number(value)
    if found is None:
        return _NOTHING if value is None else text_of(value)
    return f"{found:,.0f}" if isinstance(value, int) else f"{found:.4f}" if 1e-3 <= abs(found) < 1e4 else f"{found:.4g}"


def _trained(run: Run) -> str:
    trainable, total = (number(run.part("model").get(name)) for name in ("trainable", "total"))
    if trainable is None or not total:
        return _NOTHING
    return f"{trainable:,.0f} of {total:,.0f} ({trainable / total:.2%})"


def _steps(run: Run) -> str:
    done = max((steps[-1] for steps, _ in run.series.values()), default=0)
    total = number(run.part("plan").get("total_steps"))
    return f"{done:,}" if total is None or total == done else f"{done:,} of {total:,.0f}"


def _time(value: Any) -> str:
    return _NOTHING if value is None else text_of(value).replace("T", " ").replace("+00:00", " UTC")


def _took(run: Run) -> str:
    seconds = number(run.part("result").get("seconds"))
    if seconds is None:
        try:
            begun, ended = (datetime.fromisoformat(run.facts[name]) for name in ("started", "finished"))
            seconds = (ended - begun).total_seconds()
        except (KeyError, TypeError, ValueError):
            return _NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _last(run: Run, name: str) -> str:
    return _short(run.series[name][1][-1]) if name in run.series else _NOTHING


def _best(run: Run) -> str:
    best = mapping(run.facts.get("best"))
    if not {"step", "metric", "value"} <= best.keys():
        return _NOTHING
    return f"{text_of(best['metric'])} {_short(best['value'])} at step {_count(best['step'])}"


def _are_counts(line: Any, length: int) -> bool:
    return isinstance(line, list) and len(line) == length and all(isinstance(count, int) for count in line)


# the ledger ---


def _ledger(title: str, part: Mapping[str, Any]) -> Ledger:
    sources = mapping(part.get("sources"))
    rows = [_source(name, mapping(account)) for name, account in sources.items()]
    if len(rows) > 1:
        rows.append(_source("total", mapping(part.get("total"))))
    remarks = [remark for account in sources.values() for remark in _remarks(mapping(account))]
    leaks = part.get("leaks")
    if isinstance(leaks, list) and leaks:
        remarks.append(f"evaluation prompts among the training rows: {len(leaks):,}: {_some(leaks)}")
    histogram = mapping(mapping(mapping(part.get("total")).get("lengths")).get("histogram"))
    counts = {name: int(number(count) or 0) for name, count in histogram.items()}
    most = max([*counts.values(), 1])
    return Ledger(title, tuple(rows), tuple(remarks), tuple((name, n, n / most) for name, n in counts.items()))


def _source(name: str, account: Mapping[str, Any]) -> tuple[str, ...]:
    median = mapping(mapping(account.get("lengths")).get("percentiles")).get("50")
    held = (str(sum(_size(rows) for rows in mapping(account.get(word)).values())) for word in ("cut", "dropped"))
    return (
        name, _count(account.get("read")), _count(account.get("kept")), *held, _count(account.get("tokens")),
        _share(account.get("trained_share")), _count(median), _count(account.get("longest")),
    )  # fmt: skip


def _remarks(account: Mapping[str, Any]) -> Iterator[str]:
    for word in ("cut", "dropped"):
        for reason, rows in mapping(account.get(word)).items():
            yield f"{word}: {_size(rows):,} by {reason}" + (f": {_some(rows)}" if isinstance(rows, list) else "")
    duplicates = account.get("duplicates")
    if isinstance(duplicates, list) and duplicates:
        yield f"duplicates: {len(duplicates):,}: {_some(duplicates)}"
    for word, told in (("unused_columns", "columns not read"), ("left_out", "left out"), ("labels", "labels")):
        named = mapping(account.get(word))
        if named:
            yield f"{told}: " + ", ".join(f"{name} ({_count(count)})" for name, count in named.items())


def _size(rows: Any) -> int:
    return len(rows) if isinstance(rows, list) else int(number(rows) or 0)


def _some(rows: Iterable[Any]) -> str:
    named = [" = ".join(map(text_of, row)) if isinstance(row, list) else text_of(row) for row in rows]
    more = f" and {len(named) - SHOWN_ROWS:,} more" if len(named) > SHOWN_ROWS else ""
    return ", ".join(named[:SHOWN_ROWS]) + more
