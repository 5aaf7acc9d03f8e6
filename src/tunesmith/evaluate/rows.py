"""The rows that a model is judged on: which they are, a sample of them, and whether several models have the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tunesmith.config.schema import DataSection
from tunesmith.data.row import Row
from tunesmith.errors import DataError


def held_out_rows(data: DataSection, instead: str | list[str] | None = None, limit: int | None = None) -> list[Row]:
    """The rows that a run's model is judged on: those it was evaluated on during training, or those of ``instead``.

    Raises:
        DataError: the settings hold nothing out, or rows cannot be read.
    """
    from tunesmith.data.selection import evaluation_rows, load_rows

    changes: dict[str, Any] = {} if limit is None else {"eval_limit": limit}
    if instead is not None:
        changes |= {"eval_data": instead, "eval_limit": limit}
    data = data.model_copy(update=changes)
    # Only a share of the training rows needs those to be read.
    named = data.eval_data is not None or data.eval_split is not None
    rows = evaluation_rows(data) if named else load_rows(data)[1] if data.dev_split else []
    if not rows:
        raise DataError("there are no rows to evaluate on", remedy="name some (--data FILE)")
    return rows


def sampled(rows: Sequence[Row], number: int | None, seed: int | None) -> list[Row]:
    """``number`` of the rows in their order: the first ones, or a random choice where there is a seed; None is all."""
    if number is None or number >= len(rows):
        return list(rows)
    if seed is None:
        return list(rows[:number])
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), number))]


def check_same_rows(first: str, rows: Sequence[Row], second: str, other: Sequence[Row]) -> None:
    """Refuse to compare two models, given by their names and rows, that would be judged on different rows.

    Raises:
        DataError: the rows differ.
    """
    for one, two in zip(rows, other, strict=False):
        if one.values != two.values:
            raise DataError(
                f"{second} is judged on other rows than {first}: {two.where} is not {one.where}",
                remedy="name the rows for all of them (--data FILE)",
            )
    if len(rows) != len(other):
        raise DataError(
            f"{second} is judged on {len(other)} rows and {first} on {len(rows)}",
            remedy="name the rows for all of them (--data FILE)",
        )
