"""Examples made while training asks for them, from data that is larger than memory or patience.

Nothing is kept; which rows are read is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from tunesmith.data.examples import ExampleBuilder, check_kept
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Example
from tunesmith.data.row import Row


class ExampleStream:
    """The first ``number`` examples in the order of the rows; after the last row the first one follows again.

    It reads forward; an earlier example than the last one starts the reading anew. Memory holds one chunk of rows.

    Args:
        rows: gives the rows from the start at each call.
        builder: turns them into examples.
        number: examples that may be asked for.

    Attributes:
        ledger: account of the first pass over the rows, as far as it went.
    """

    def __init__(self, rows: Callable[[], Iterable[Row]], builder: ExampleBuilder, number: int) -> None:
        self._rows = rows
        self._builder = builder
        self._number = number
        self._restart()

    def __getstate__(self) -> dict[str, int]:
        return {"number": self._number}  # for whoever wants a hash; a stream stays in its process

    def first(self, number: int) -> Iterator[Example]:
        """The first examples, however few may be asked for by their index; a pass of its own."""
        return islice(self._endless(Ledger()), number)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._number:
            raise IndexError(index)
        if index < self._next:
            self._restart()
        for example in self._examples:
            self._next += 1
            if self._next == index + 1:
                return example
        raise IndexError(index)

    def _restart(self) -> None:
        self.ledger = Ledger()
        self._next = 0
        self._examples = self._endless(self.ledger)

    def _endless(self, ledger: Ledger) -> Iterator[Example]:
        while True:
            kept = 0
            for example in self._builder.examples(self._rows(), ledger):
                kept += 1
                yield example
            check_kept(kept, ledger, self._builder)
            ledger = Ledger()  # further passes meet the same rows
