"""NLI fine-tuning rows from tables, thought rows and reflection rows: selection, split by premise, leak check.

It writes no files and prints nothing; the wording of a row is ``nli.py``'s.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.nli import nli_text
from tunesmith.data.row import Problems, Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError

Select = Literal["correct", "reflected", "all"]
FineTuningRow = dict[str, Any]

LABELS = {"0": 0, "1": 1, "entailment": 1, "neutral": 0, "contradiction": 0, "not_entailment": 0, "no entailment": 0}
NO_GOLD_LABEL = ("-", "-1")
"""How SNLI marks a pair on which its annotators did not agree."""

COLUMN_ALIASES = {"gold_label": "label", "sentence1": "premise", "sentence2": "hypothesis", "pairid": "id"}
"""Column names of SNLI's own releases."""

_PREMISE_OF_TEXT = re.compile(r"Premise: (.*?)\nHypothesis: ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Thought:
    """One chain of thought with its label: a candidate for a fine-tuning row."""

    id: str
    premise: str
    hypothesis: str
    thought_process: str
    label: int
    true_label: int
    where: str
    improved: bool = False

    @property
    def right(self) -> bool:
        """Whether the thought arrives at the true label."""
        return self.label == self.true_label

    def row(self) -> FineTuningRow:
        """The fine-tuning row."""
        text = nli_text(self.premise, self.hypothesis, self.thought_process, self.label)
        return {"id": self.id, "text": text}


@dataclass(frozen=True, slots=True)
class Prepared:
    """Fine-tuning rows of both sides, and how many rows went where."""

    train: list[FineTuningRow]
    eval: list[FineTuningRow]
    counts: dict[str, int] = field(default_factory=dict)


def prepare_nli(
    *,
    csv: str | None = None,
    thoughts: str | None = None,
    reflections: str | None = None,
    select: Select = "all",
    eval_share: float = 0.1,
    eval_file: str | None = None,
    seed: int = 42,
) -> Prepared:
    """Fine-tuning rows from a table, or from thought rows and reflection rows.

    No premise stands on both sides. Which premises are held out depends on the seed and on the premises alone, so every
    selection from the same files has the same evaluation rows. Evaluation rows always carry true labels.

    Args:
        csv: table with premise, hypothesis, label, and thought_process or explanation_1 to explanation_3.
        thoughts: rows with premise, hypothesis, thought_process, predicted_label, true_label.
        reflections: rows with premise, hypothesis, true_label, improved_thought_process.
        select: ``correct`` takes thoughts whose label was right; ``reflected`` these and the improved thoughts with the
            true label; ``all`` every thought row as it was written.
        eval_share: share of the premises held out.
        eval_file: rows that exist already and are held out instead; their premises are left out of training.
        seed: decides which premises are held out.

    Raises:
        DataError: rows are broken, there is nothing to train on, or a premise is on both sides.
    """
    counts: Counter[str] = Counter()
    if csv is not None:
        candidates = _table(csv, counts)
    else:
        candidates = [
            *(_thoughts(thoughts, counts) if thoughts is not None else []),
            *(_reflections(reflections, counts) if reflections is not None else []),
        ]
    if eval_file is not None:
        held_out = {_key(premise) for premise in _premises_of(eval_file)}
    else:
        held_out = _held_out_premises([candidate.premise for candidate in candidates], eval_share, seed)
    kept = [candidate for candidate in candidates if _key(candidate.premise) not in held_out]
    chosen = _unique([candidate for candidate in kept if _selected(candidate, select)], counts)
    train = [candidate.row() for candidate in chosen]
    counts[f"not selected by --select {select}"] = sum(not _selected(candidate, select) for candidate in kept)
    evaluation: list[FineTuningRow] = []
    others = [candidate for candidate in candidates if _key(candidate.premise) in held_out]
    if eval_file is not None:
        counts["left out: premise occurs in the evaluation file"] = len(others)
    else:
        right = _unique([candidate for candidate in others if candidate.right], counts)
        counts["left out of evaluation: wrong label"] = sum(not candidate.right for candidate in others)
        evaluation = [candidate.row() for candidate in right]
        counts |= _label_counts("evaluation", right)
    counts |= _label_counts("training", chosen)
    if not train:
        source = csv or thoughts or reflections
        raise DataError(f"--select {select} leaves nothing to train on", where=source)
    check_no_leak(train, evaluation or ([row.values for row in _rows(eval_file)] if eval_file else []))
    return Prepared(train, evaluation, {name: number for name, number in counts.items() if number})


def check_no_leak(train: Iterable[FineTuningRow], evaluation: Iterable[FineTuningRow]) -> None:
    """Make sure that no premise is on both sides.

    Raises:
        DataError: one is; the error names it.
    """
    held_out = {_key(_premise(row, "evaluation rows")) for row in evaluation}
    for row in train:
        premise = _premise(row, "training rows")
        if _key(premise) in held_out:
            raise DataError(f"the premise {premise!r} is in training and in evaluation", where=str(row.get("id")))


def _selected(candidate: Thought, select: Select) -> bool:
    if select == "all":
        return not candidate.improved
    return candidate.right and (select == "reflected" or not candidate.improved)


def _held_out_premises(premises: Sequence[str], share: float, seed: int) -> set[str]:
    """The premises with the smallest hashes: as many as the share says, whatever else is in the files."""
    keys = sorted(
        {_key(premise) for premise in premises}, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    )
    return set(keys[: round(len(keys) * share)])


def _key(premise: str) -> str:
    """The premise as far as it matters for leaks: without differences of case and spacing."""
    return " ".join(premise.casefold().split())


def _unique(candidates: Iterable[Thought], counts: Counter[str]) -> list[Thought]:
    """The candidates without repetitions of the same words and label."""
    found: dict[tuple[str, str, str, int], Thought] = {}
    for candidate in candidates:
        key = (candidate.premise, candidate.hypothesis, candidate.thought_process, candidate.label)
        if key in found:
            counts["repeated rows left out"] += 1
        else:
            found[key] = candidate
    return list(found.values())


def _label_counts(side: str, candidates: Sequence[Thought]) -> dict[str, int]:
    counts = {f"{side} rows": len(candidates)}
    for label in (1, 0):
        counts[f"{side} rows with label {label}"] = sum(candidate.label == label for candidate in candidates)
    return counts


# Reading --------------------------------------------------------------------------------------------------------------


def _rows(name: str) -> list[Row]:
    return read_rows(name)


def _table(name: str, counts: Counter[str]) -> list[Thought]:
    found, problems = [], Problems()
    for row in _rows(name):
        counts["table rows read"] += 1
        values = {COLUMN_ALIASES.get(key.lower(), key.lower()): value for key, value in row.values.items()}
        if str(values.get("label", "")).strip() in NO_GOLD_LABEL:
            counts["table rows left out: no gold label"] += 1
            continue
        try:
            label = _label(values, "label", row.where)
            found.append(
                Thought(
                    _id(values, row),
                    _text(values, "premise", row.where),
                    _text(values, "hypothesis", row.where),
                    _steps(values, row.where),
                    label,
                    label,
                    row.where,
                )
            )
        except DataError as problem:
            problems.add(problem)
    problems.stop()
    return found


def _thoughts(name: str, counts: Counter[str]) -> list[Thought]:
    found, problems = [], Problems()
    for row in _rows(name):
        counts["thought rows read"] += 1
        try:
            found.append(_thought(row))
        except DataError as problem:
            problems.add(problem)
    problems.stop()
    return found


def _thought(row: Row) -> Thought:
    values = row.values
    thought = Thought(
        _id(values, row),
        _text(values, "premise", row.where),
        _text(values, "hypothesis", row.where),
        _text(values, "thought_process", row.where),
        _label(values, "predicted_label", row.where),
        _label(values, "true_label", row.where),
        row.where,
    )
    stated = values.get("correct")
    if stated is not None and bool(stated) != thought.right:
        raise DataError(
            f"correct is {stated}, and predicted_label {thought.label} against true_label {thought.true_label} "
            "says otherwise",
            where=row.where,
        )
    return thought


def _reflections(name: str, counts: Counter[str]) -> list[Thought]:
    found, problems = [], Problems()
    for row in _rows(name):
        counts["reflection rows read"] += 1
        try:
            label = _label(row.values, "true_label", row.where)
            found.append(
                Thought(
                    _id(row.values, row),
                    _text(row.values, "premise", row.where),
                    _text(row.values, "hypothesis", row.where),
                    _text(row.values, "improved_thought_process", row.where),
                    label,
                    label,
                    row.where,
                    improved=True,
                )
            )
        except DataError as problem:
            problems.add(problem)
    problems.stop()
    return found


def _premises_of(name: str) -> list[str]:
    return [_premise(row.values, row.where) for row in _rows(name)]


def _premise(values: dict[str, Any], where: str) -> str:
    if isinstance(values.get("premise"), str):
        return str(values["premise"])
    match = _PREMISE_OF_TEXT.search(values["text"]) if isinstance(values.get("text"), str) else None
    if match is None:
        raise DataError(
            "no premise found", where=where, remedy="rows need the column premise, or text with 'Premise: '"
        )
    return match[1]


def _id(values: dict[str, Any], row: Row) -> str:
    given = values.get("id")
    return str(given) if given not in (None, "") else f"{Path(row.source).stem}-{row.line}"


def _text(values: dict[str, Any], column: str, where: str) -> str:
    if column not in values:
        raise DataError(f"no column {column}", where=where, remedy=f"columns are {', '.join(values)}")
    value = values[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{column} is {value!r}, not a text", where=where)
    return value.strip()


def _label(values: dict[str, Any], column: str, where: str) -> int:
    if column not in values:
        raise DataError(f"no column {column}", where=where, remedy=f"columns are {', '.join(values)}")
    value = values[column]
    if not isinstance(value, bool) and str(value).strip().lower() in LABELS:
        return LABELS[str(value).strip().lower()]
    raise DataError(
        f"{column} is {value!r}",
        where=where,
        remedy="labels are 1 (entailment) and 0 (no entailment), or entailment, neutral and contradiction",
    )


def _steps(values: dict[str, Any], where: str) -> str:
    """The thought of a table row: its own, or one step for each explanation that somebody wrote."""
    if str(values.get("thought_process") or "").strip():
        return _text(values, "thought_process", where)
    explanations = [str(values.get(f"explanation_{number}") or "").strip() for number in (1, 2, 3)]
    written = [text if text[-1] in ".!?" else f"{text} ." for text in explanations if text]
    if not written:
        raise DataError(
            "neither thought_process nor explanation_1 says how the label follows",
            where=where,
            remedy="a fine-tuning row needs a chain of thought",
        )
    return " ".join(f"step {number}: {text}" for number, text in enumerate(written, start=1))
