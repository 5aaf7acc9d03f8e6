"""Finished examples in an Arrow file, read from disk as they are needed: memory stays flat whatever their number.

How examples are made, cached or batched is decided elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import pyarrow as pa

from tunesmith.data.masking import Example
from tunesmith.errors import StorageError

CHUNK = 2048
"""Examples of one Arrow record batch."""

ARROW_TYPES = {
    "list[int]": pa.list_(pa.int32()),
    "list[float] | None": pa.list_(pa.float32()),
    "int": pa.int32(),
    "str": pa.string(),
    "str | None": pa.string(),
}
SCHEMA = pa.schema([(field.name, ARROW_TYPES[str(field.type)]) for field in fields(Example)])
"""One column for every field of ``Example``."""

Numbers = np.ndarray[Any, np.dtype[Any]]


class ExampleWriter:
    """Writes examples one after the other; use it as a context manager, then ``fingerprint`` is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self._digest = hashlib.sha256()
        self._waiting: list[Example] = []
        self._writer = pa.ipc.new_stream(str(path), SCHEMA)

    def write(self, example: Example) -> None:
        """Add one example."""
        self.number += 1
        self._waiting.append(example)
        if len(self._waiting) == CHUNK:
            self._flush()

    @property
    def fingerprint(self) -> str:
        """sha256 over the contents of all examples in order, their addresses left out."""
        return self._digest.hexdigest()

    def __enter__(self) -> ExampleWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = {name: [getattr(example, name) for example in self._waiting] for name in SCHEMA.names}
        batch = pa.RecordBatch.from_pydict(columns, schema=SCHEMA)
        for name in ("input_ids", "labels", "weights"):
            if name in SCHEMA.names:
                column = batch.column(name)
                self._digest.update(np.asarray(column.value_lengths().fill_null(-1)).tobytes())
                self._digest.update(np.asarray(column.flatten()).tobytes())
        self._writer.write_batch(batch)
        self._waiting.clear()


class ExampleStore(Sequence[Example]):
    """The examples of a file, in its order.

    Args:
        path: what an ``ExampleWriter`` wrote.

    Raises:
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as file:
                self._batches = list(pa.ipc.open_stream(file))
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"the stored examples cannot be read ({error})", where=str(path)) from error
        if any(batch.schema != SCHEMA for batch in self._batches):
            raise StorageError("the stored examples are of another version", where=str(path))
        sizes = [batch.num_rows for batch in self._batches]
        self._starts = np.cumsum([0, *sizes])
        self._lists: dict[tuple[int, str], tuple[Numbers, Numbers]] = {}

    def __getstate__(self) -> Path:
        return self.path  # a process that works on batches opens the file itself

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> ExampleStore:
        return self  # it never changes

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        number, row = self._place(index)
        batch = self._batches[number]
        values: dict[str, Any] = {}
        for name in SCHEMA.names:
            if pa.types.is_list(SCHEMA.field(name).type):
                values[name] = self._list(number, name, row)
            else:
                values[name] = batch.column(name)[row].as_py()
        return Example(**values)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def lengths(self) -> Numbers:
        """Tokens of each example, in order."""
        counts = [np.asarray(batch.column("input_ids").value_lengths()) for batch in self._batches]
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int32)

    @property
    def weighted(self) -> bool:
        """Whether any example has weights of its own."""
        if "weights" not in SCHEMA.names:
            return False
        return any(batch.column("weights").null_count < batch.num_rows for batch in self._batches)

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        number = int(np.searchsorted(self._starts, at, side="right")) - 1
        return number, at - int(self._starts[number])

    def _columns(self, number: int, name: str) -> tuple[Numbers, Numbers]:
        if (number, name) not in self._lists:
            column = self._batches[number].column(name)
            self._lists[number, name] = (np.asarray(column.offsets), np.asarray(column.values))
        return self._lists[number, name]

    def _list(self, number: int, name: str, row: int) -> list[Any] | None:
        column = self._batches[number].column(name)
        if column.null_count and not column[row].is_valid:
            return None
        offsets, values = self._columns(number, name)
        numbers: list[Any] = values[offsets[row] : offsets[row + 1]].tolist()
        return numbers
