"""Families of rows that begin alike, and an order that keeps each family in one batch.

Rows of one premise or one document share nothing where a random order spreads them over an epoch.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tunesmith.data.masking import Example
from tunesmith.data.prefix import shareable

LEAST_SHARED = 8
"""Tokens that relatives have in common beyond what all rows around them have."""
LONGEST_BEGINNING = 2048
"""Tokens of a row that are compared."""
WINDOW = 64
"""Families among which one is looked for that still fits into a batch."""


def families(examples: Sequence[Example], batch_size: int) -> list[int]:
    """The number of each row's family; a row without relatives is one by itself.

    Rows are sorted by their tokens, so that relatives are neighbours. A run of neighbours is a family when it fits into
    a batch; in a longer one, the rows that have more in common than all of it are families of their own, and the rest
    is one that ``family_order`` divides.

    Args:
        examples: the rows; up to LONGEST_BEGINNING tokens of each are held in memory meanwhile.
        batch_size: rows of a batch.
    """
    beginnings = [_beginning(example) for example in examples]
    order = sorted(range(len(beginnings)), key=beginnings.__getitem__)
    common = [_common(beginnings[one], beginnings[other]) for one, other in pairwise(order)]
    numbers = [0] * len(order)
    for number, places in enumerate(_families_of_sorted(common, batch_size)):
        for at in places:
            numbers[order[at]] = number
    return numbers


def _beginning(example: Example) -> bytes:
    """The tokens that a row may share, four bytes each, which sort as the tokens do."""
    length = min(shareable(example.labels), LONGEST_BEGINNING)
    return np.asarray(example.input_ids[:length], dtype=">u4").tobytes()


def _common(one: bytes, other: bytes) -> int:
    """Tokens with which both begin."""
    length = min(len(one), len(other)) // 4
    differs = np.frombuffer(one, "u4", length) != np.frombuffer(other, "u4", length)
    return int(differs.argmax()) if differs.any() else length


def _families_of_sorted(common: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """The families among sorted rows; ``common[i]``: tokens that the rows i and i + 1 share."""
    pending = [(0, len(common) + 1, 0)]
    while pending:
        start, stop, above = pending.pop()
        inside = common[start : stop - 1]
        shared = min(inside, default=0)
        related = len(inside) > 0 and shared >= above + LEAST_SHARED
        if len(inside) == 0 or (related and stop - start <= batch_size):
            yield range(start, stop)
            continue
        borders = [start + 1 + at for at, length in enumerate(inside) if length < shared + LEAST_SHARED]
        pieces = list(pairwise([start, *borders, stop]))
        pending += [(first, end, shared) for first, end in pieces if end - first > 1]
        alone = [first for first, end in pieces if end - first == 1]
        yield from [alone] if related and alone else [[one] for one in alone]


def family_order(numbers: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """A random order whose batches hold whole families, as far as they fit.

    Families and the rows of each are shuffled. A batch takes the next one that fits, among the next WINDOW; where none
    fits, the first is divided. Every row comes once.
    """
    members: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        members.setdefault(number, []).append(row)
    generator = random.Random(seed)
    shuffled = list(members.values())
    generator.shuffle(shuffled)
    for family in shuffled:
        generator.shuffle(family)
    waiting, order = deque(shuffled), list[int]()
    while waiting:
        room = batch_size - len(order) % batch_size
        fitting = next((at for at in range(min(WINDOW, len(waiting))) if len(waiting[at]) <= room), None)
        if fitting is None:
            first = waiting.popleft()
            order += first[:room]
            waiting.appendleft(first[room:])
        else:
            order += waiting[fitting]
            del waiting[fitting]
    return order


class FamilySampler:
    """The order of ``family_order``, another in each epoch, which the epoch's number and the seed decide."""

    def __init__(self, numbers: Sequence[int], batch_size: int, seed: int) -> None:
        self.numbers = numbers
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return iter(family_order(self.numbers, self.batch_size, self.seed + self.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each pass."""
        self.epoch = epoch
