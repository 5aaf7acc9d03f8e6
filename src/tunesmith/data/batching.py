"""Which examples lie together in a row of a batch, and in which order. Tensors are ``collate.py``'s."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.store import ExampleStore

Batching = Literal["padded", "length_grouped", "packed", "unpadded", "prefix_tree"]
"""Layouts of a batch. ``padded``, ``unpadded`` and ``prefix_tree`` have the same rows in the same batches."""


class BatchRows(Sequence[dict[str, Any]]):
    """The elements of a data set, made when they are asked for: an example each, or, packed, several together.

    An element is a dictionary with ``input_ids``, ``labels``, ``lengths`` (tokens of each example inside) and
    ``origins``; with ``weights`` too where any example of the whole set has some (1.0 for the others).

    Attributes:
        groups: numbers of the examples of each element.
        lengths: tokens of each element.
    """

    def __init__(self, examples: Sequence[Example], batching: Batching, max_length: int) -> None:
        self._state = (examples, batching, max_length)
        self._examples = examples
        lengths: list[int]
        if isinstance(examples, ExampleStore):
            lengths, self.weighted = examples.lengths().tolist(), examples.weighted
        else:
            lengths = [len(example.input_ids) for example in examples]
            self.weighted = any(example.weights is not None for example in examples)
        self.groups: Sequence[Sequence[int]]
        if batching == "packed":
            self.groups = pack(lengths, max_length)
            self.lengths: list[int] = [sum(lengths[index] for index in group) for group in self.groups]
        else:
            self.groups = [(index,) for index in range(len(lengths))]
            self.lengths = lengths

    def __getstate__(self) -> tuple[Any, ...]:
        return self._state  # small, where the examples lie in a file

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return joined([self._examples[at] for at in self.groups[index]], weighted=self.weighted)


def joined(group: Sequence[Example], *, weighted: bool = False) -> dict[str, Any]:
    """Examples that stand in one element, end to end."""
    item: dict[str, Any] = {
        "input_ids": [token for example in group for token in example.input_ids],
        "labels": [label for example in group for label in example.labels],
        "lengths": [len(example.input_ids) for example in group],
        "origins": [example.origin for example in group],
    }
    if weighted:
        item["weights"] = [weight for example in group for weight in example.weights or [1.0] * len(example.labels)]
    return item


def filler(*, weighted: bool) -> dict[str, Any]:
    """An element that completes a batch and teaches nothing: one token without a label."""
    weights = {"weights": [0.0]} if weighted else {}
    return {"input_ids": [0], "labels": [IGNORE_INDEX], "lengths": [1], "origins": [], **weights}


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of the examples that share a row of ``capacity`` tokens.

    Longer examples go first, each into the fullest row that still has room. Rows are returned in the order of their
    first example, so the result depends on nothing but the lengths.

    Raises:
        ValueError: a length is greater than the capacity.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit into {capacity}")
    rows: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}
    spaces: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        at = bisect_left(spaces, length)
        if at == len(spaces):
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = spaces[at]
            row = rows_with[space].pop()
            if not rows_with[space]:
                del rows_with[space], spaces[at]
        rows[row].append(index)
        left = space - length
        if left not in rows_with:
            rows_with[left] = []
            insort(spaces, left)
        rows_with[left].append(row)
    return sorted(sorted(row) for row in rows)


def length_grouped_order(lengths: Sequence[int], batch_size: int, seed: int, *, groups: int = 50) -> list[int]:
    """A random order in which neighbours have similar lengths.

    The rows are shuffled, cut into stretches of ``groups`` batches, and each is sorted by length, longest first;
    then the batches of all stretches are shuffled, except that the batch with the longest row comes first, so that a
    lack of memory shows at once.
    """
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    stretch = batch_size * groups
    batches: list[list[int]] = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda index: (-lengths[index], index))
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    if not batches:
        return []
    whole = [batch for batch in batches if len(batch) == batch_size]
    rest = [index for batch in batches if len(batch) < batch_size for index in batch]
    generator.shuffle(whole)
    whole.sort(key=lambda batch: max(lengths[index] for index in batch) < max(lengths))
    return [index for batch in whole for index in batch] + rest


class LengthGroupedSampler:
    """The order of ``length_grouped_order``, another in each epoch, which the epoch's number and the seed decide.

    An order that depends on nothing else is the same again when a run is continued in the middle of an epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(length_grouped_order(self.lengths, self.batch_size, self.seed + self.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each pass."""
        self.epoch = epoch


class FilledSampler:
    """The order of another sampler, and behind it the elements that only fill batches up.

    Args:
        sampler: orders the elements 0 ... len(sampler) - 1, in another way in each epoch.
        length: number of all elements.
    """

    def __init__(self, sampler: Any, length: int) -> None:
        self.sampler = sampler
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from range(len(self.sampler), self.length)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each pass."""
        self.sampler.set_epoch(epoch)
