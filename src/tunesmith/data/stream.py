"""Examples made while training asks for them, from data that is larger than memory or patience.

Nothing is kept; which rows are read is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

from tunesmith.data.examples import ExampleBuilder, check_kept
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Example
from tunesmith.data.row import Row


class ExampleStream:
    """The first ``number`` items in the order of the rows; after the last row another pass follows.

    An item is an example, or a list of those that share a batch row. It reads forward; an earlier item than the last
    one starts the reading anew, so that a run which continues finds what it left. Memory holds one chunk of rows.

    Args:
        rows: gives the rows of a pass from the start, by its number from 0.
        builder: turns them into examples.
        number: items that may be asked for.
        pack_to: tokens up to which consecutive examples share a batch row; None: each has its own.

    Attributes:
        ledger: account of the first pass over the rows, as far as it went.
    """

    def __init__(
        self, rows: Callable[[int], Iterable[Row]], builder: ExampleBuilder, number: int, pack_to: int | None = None
    ) -> None:
        self._rows = rows
        self._builder = builder
        self._number = number
        self._pack_to = pack_to
        self._restart()

    def __getstate__(self) -> dict[str, int]:
        return {"number": self._number}  # for whoever wants a hash; a stream stays in its process

    def first(self, number: int) -> Iterator[Example]:
        """The first examples, however few may be asked for by their index; a pass of its own."""
        return islice(self._endless(Ledger()), number)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Example | list[Example]:
        if not 0 <= index < self._number:
            raise IndexError(index)
        if index < self._next:
            self._restart()
        for item in self._items:
            self._next += 1
            if self._next == index + 1:
                return item
        raise IndexError(index)

    def catch_up(self, number: int) -> None:
        """Read as far as a run has that took ``number`` items, so that the ledger tells of them all.

        A run that continues from its last step asks for no item any more.
        """
        if self._next < min(number, self._number):
            self[min(number, self._number) - 1]

    def _restart(self) -> None:
        self.ledger = Ledger()
        self._next = 0
        examples = self._endless(self.ledger)
        self._items: Iterator[Example | list[Example]] = (
            examples if self._pack_to is None else packed(examples, self._pack_to)
        )

    def _endless(self, ledger: Ledger) -> Iterator[Example]:
        for number in count():
            kept = 0
            for example in self._builder.examples(self._rows(number), ledger):
                kept += 1
                yield example
            check_kept(kept, ledger, self._builder)
            ledger = Ledger()  # further passes meet the same rows


def packed(examples: Iterable[Example], length: int) -> Iterator[list[Example]]:
    """Consecutive examples of at most ``length`` tokens together; nothing waits longer than until its row is full."""
    waiting: list[Example] = []
    used = 0
    for example in examples:
        if waiting and used + len(example.input_ids) > length:
            yield waiting
            waiting, used = [], 0
        waiting.append(example)
        used += len(example.input_ids)
    if waiting:
        yield waiting
