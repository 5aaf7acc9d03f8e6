"""Examples as the data set that the trainer draws its batches from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from tunesmith.config.resolve import Resolved
from tunesmith.data.batching import BatchRows, filler, joined
from tunesmith.data.families import families
from tunesmith.data.masking import Example
from tunesmith.data.stream import ExampleStream
from tunesmith.train.order import rows_layout


def training_rows(examples: Sequence[Example] | ExampleStream, resolved: Resolved, num_processes: int) -> Dataset:
    """Training examples as the data set that the trainer draws batches from.

    It holds numbers of examples; their tokens are read when a batch is made. Rows of no label and length 0 fill up the
    end, so that each of several processes gets equally many full batches: accelerate would repeat the first rows
    instead, and they would count twice.
    """
    if isinstance(examples, ExampleStream):
        return Dataset.from_dict({"row": range(len(examples))}).with_transform(ReadRows(examples))
    rows = BatchRows(examples, rows_layout(resolved), resolved.config.data.max_length)
    size = resolved.config.training.per_device_train_batch_size
    related = families(examples, size) if resolved.config.training.group_by_prefix else None
    return _table(rows, fillers=-len(rows) % (size * num_processes) if num_processes > 1 else 0, related=related)


def evaluation_rows(examples: Sequence[Example]) -> Dataset | None:
    """The same of an evaluation, one example a row; None when there are none."""
    return _table(BatchRows(examples, "padded", 0)) if examples else None


def _table(rows: BatchRows, fillers: int = 0, related: Sequence[int] | None = None) -> Dataset:
    columns: dict[str, Any] = {"row": range(len(rows) + fillers), "length": [*rows.lengths, *[0] * fillers]}
    if related is not None:
        columns["family"] = [*related, *[0] * fillers]
    table = Dataset.from_dict(columns)
    return table.with_transform(ReadRows(rows))


def num_batch_rows(rows: Dataset) -> int:
    """Rows that are trained on, without those that only fill batches up."""
    if "length" not in rows.column_names:
        return len(rows)
    return len(rows) - int(rows.with_format(None)["length"][:].count(0))


class ReadRows:
    """Numbers of batch rows to their tokens and labels; a class, so that worker processes can be given one."""

    def __init__(self, rows: BatchRows | ExampleStream) -> None:
        self.rows = rows

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadRows:
        return self

    def __call__(self, numbers: dict[str, list[int]]) -> dict[str, list[Any]]:
        chosen = [self._row(number) for number in numbers["row"]]
        return {name: [row[name] for row in chosen] for name in chosen[0]}

    def _row(self, number: int) -> dict[str, Any]:
        if isinstance(self.rows, BatchRows) and number >= len(self.rows):
            return filler(weighted=self.rows.weighted)
        row = self.rows[number]
        if isinstance(row, list):
            return joined(row, weighted=True)
        # whether a later row of a stream has weights is not known, so all of them bring theirs
        return joined([row], weighted=True) if isinstance(row, Example) else row
