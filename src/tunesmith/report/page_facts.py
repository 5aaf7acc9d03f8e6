"""What a report page tells of a run, gathered from the run folder alone: finished, under way, or cut short.

Nothing here trusts what it reads: a part that is missing, torn or of another shape is left out, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config import files
from tunesmith.errors import StorageError
from tunesmith.report.folder import MAX_BYTES, read_json
from tunesmith.report.plots import METRICS, Series
from tunesmith.report.record import read_facts
from tunesmith.report.told import StatusOf, mapping, number, recorded_status, text_of

LEDGER = "ledger.json"
EVALUATION = "evaluation"
PREDICTIONS = "predictions.jsonl"
MOST_ROWS = 5_000
"""Answers of one run that are looked at for the page; they are counted all the same."""
MOST_LINE = 4_000_000
"""Bytes of one line of a log."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one row."""

    source: str
    prompt: str
    reference: str
    output: str
    read: str
    correct: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of a run by the row (name and line of its file, what is right), the first ones of its file, and how many
    there are of all."""

    by_row: Mapping[str, Answer] = field(default_factory=dict)
    total: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        name: how the page calls it.
        status: what became of it.
        facts: ``run.json``.
        series: the log, figure by figure.
        ledger: ``ledger.json``; empty where there is none.
        figures: ``metrics.json`` of the evaluation; empty where there is none.
        judged: which evaluation that is, in words.
        answers: the answers behind the figures.
        remarks: what could not be read.
    """

    name: str
    folder: Path
    status: str
    facts: Mapping[str, Any]
    series: Mapping[str, Series]
    ledger: Mapping[str, Any]
    figures: Mapping[str, Any]
    judged: str
    answers: Answers
    remarks: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its path."""
        return dict(self.facts["settings"])

    @property
    def origins(self) -> dict[str, str]:
        """Where each value came from."""
        return dict(self.facts.get("origins") or {})

    @property
    def notices(self) -> list[str]:
        """What the run told its user."""
        told = self.facts.get("notices")
        return [text_of(notice) for notice in told] if isinstance(told, list) else []

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of the record that is an object; empty where it is none."""
        return mapping(self.facts.get(name))


def read_run(folder: Path, name: str | None = None, status_of: StatusOf = recorded_status) -> Run:
    """Gather a run's facts.

    Args:
        folder: the run folder.
        name: how to call it; the folder's name when left out.
        status_of: what became of it, by its record.

    Raises:
        StorageError: the folder is not a run folder of ours, or its record is damaged.
    """
    facts = read_facts(folder)
    remarks: list[str] = []
    series = _series(folder, remarks)
    judged, place = _judged(folder)
    return Run(
        name=name or folder.absolute().name,
        folder=folder,
        status=status_of(facts, folder),
        facts=facts,
        series=series,
        ledger=_object(folder, LEDGER, remarks),
        figures=_object(folder, f"{place}/metrics.json", remarks) if place else {},
        judged=judged,
        answers=_answers(folder, f"{place}/{PREDICTIONS}", remarks) if place else Answers(),
        remarks=tuple(remarks),
    )


def _series(folder: Path, remarks: list[str]) -> dict[str, Series]:
    """Every figure of the log by its name; what is not a finite number has no point."""
    series: dict[str, Series] = {}
    for entry in _lines(folder, METRICS, remarks):
        step = number(entry.get("step"))
        for name, value in entry.items() if step is not None else ():
            point = number(value)
            if name not in ("step", "epoch") and point is not None:
                steps, values = series.setdefault(name, ([], []))
                steps.append(int(step or 0))
                values.append(point)
    return series


def _judged(folder: Path) -> tuple[str, str | None]:
    """The evaluation that the page shows, in words and as a place in the folder: the one of the finished model, or the
    newest of those during training."""
    if (folder / EVALUATION / "metrics.json").is_file():
        return "judged after training", EVALUATION
    steps = [
        (int(path.parent.name.removeprefix("step-")), f"{EVALUATION}/{path.parent.name}")
        for path in folder.glob(f"{EVALUATION}/step-*/metrics.json")
        if path.parent.name.removeprefix("step-").isdecimal()
    ]
    if not steps:
        return "", None
    step, place = max(steps)
    return f"judged during training, after step {step:,}", place


def _answers(folder: Path, name: str, remarks: list[str]) -> Answers:
    kept: dict[str, Answer] = {}
    total = right = 0
    for row in _lines(folder, name, remarks):
        total += 1
        right += row.get("correct") is True
        if len(kept) < MOST_ROWS:
            answer = _answer(row)
            kept.setdefault(_row_of(answer), answer)
    return Answers(kept, total, right)


def _row_of(answer: Answer) -> str:
    """What tells rows apart, from whatever folder a run reached their file."""
    return f"{answer.source.replace(chr(92), '/').rpartition('/')[2]}\n{answer.reference}"


def _answer(row: Mapping[str, Any]) -> Answer:
    texts = {name: text_of(row.get(name, "")) for name in ("source", "prompt", "reference", "output", "answer")}
    return Answer(
        source=texts["source"],
        prompt=clipped(texts["prompt"]),
        reference=clipped(texts["reference"]),
        output=clipped(texts["output"]),
        read=clipped(texts["answer"]) if row.get("answer") is not None else "",
        correct=row.get("correct") is True,
    )


def clipped(text: str, most: int = 1_200) -> str:
    """``text`` without its middle where it is long: the beginning says what it is about, the end how it ended."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"


def _object(folder: Path, name: str, remarks: list[str]) -> Mapping[str, Any]:
    """An object in a JSON file of the run; empty, with a remark, where it cannot be read."""
    if not (folder / name).exists():
        return {}
    if not _is_inside(folder, name):
        remarks.append(f"{name} leads out of the run folder and was not read")
        return {}
    try:
        value = read_json(folder / name)
    except StorageError as error:
        remarks.append(f"{name}: {error.what}")
        return {}
    if not isinstance(value, dict):
        remarks.append(f"{name} holds no object")
    return mapping(value)


def _lines(folder: Path, name: str, remarks: list[str]) -> Iterator[Mapping[str, Any]]:
    """The whole lines of a JSON-lines file; torn ones, as a run under way or a loss of power leaves, are counted."""
    if not (folder / name).exists():
        return
    if not _is_inside(folder, name):
        remarks.append(f"{name} leads out of the run folder and was not read")
        return
    torn = 0
    try:
        with open(files.open_regular(folder / name), "rb") as stream:
            while line := stream.readline(MOST_LINE):
                entry = _parsed(line)
                torn += entry is None and bool(line.strip())
                if entry is not None:
                    yield entry
                if stream.tell() > MAX_BYTES:
                    remarks.append(f"{name} is very long: only its beginning was read")
                    break
    except OSError as error:
        remarks.append(f"{name}: cannot read: {error.strerror or error}")
    if torn:
        remarks.append(f"{name}: {torn:,} {'line is' if torn == 1 else 'lines are'} not whole and left out")


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        entry = files.parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a file lies in the folder, links followed: a page that is handed on must not hold a file of elsewhere."""
    return (folder / name).resolve().is_relative_to(folder.resolve())
