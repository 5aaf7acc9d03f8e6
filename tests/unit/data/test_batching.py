from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.batching import (
    BatchRows,
    FilledSampler,
    LengthGroupedSampler,
    filler,
    joined,
    length_grouped_order,
    pack,
)
from tunesmith.data.masking import IGNORE_INDEX, Example


def example(length: int, origin: str) -> Example:
    return Example(list(range(length)), list(range(length)), origin, 1, 1, length)


@given(st.lists(st.integers(1, 64), max_size=200))
def test_packing_keeps_every_example_once_and_within_capacity(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    assert rows == pack(lengths, 64)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_is_best_fit_decreasing(lengths: list[int]) -> None:
    """Against the definition, written plainly."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
            spaces.append(min(fitting) - length)
        else:
            spaces.append(20 - length)
    packed = [20 - sum(lengths[index] for index in row) for row in pack(lengths, 20)]
    assert sorted(packed) == sorted(spaces)


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens"):
        pack([65], 64)
    assert pack([], 64) == []


def test_items_of_each_layout() -> None:
    examples = [example(5, "f:1"), example(3, "f:2"), example(4, "f:3")]
    single = list(BatchRows(examples, "padded", 8))
    assert [item["origins"] for item in single] == [["f:1"], ["f:2"], ["f:3"]]
    assert list(BatchRows(examples, "unpadded", 8)) == list(BatchRows(examples, "length_grouped", 8)) == single
    packed = BatchRows(examples, "packed", 8)
    assert [(item["origins"], item["lengths"]) for item in packed] == [(["f:1", "f:2"], [5, 3]), (["f:3"], [4])]
    assert packed[0]["input_ids"] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert packed.lengths == [8, 4]
    assert packed[-1] == packed[1:][0] == packed[1]
    assert not any("weights" in item for item in packed)


def test_elements_are_the_same_in_another_process() -> None:
    import pickle

    rows = BatchRows([example(5, "f:1"), example(3, "f:2"), example(4, "f:3")], "packed", 8)
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


def test_one_example_with_weights_gives_weights_to_all() -> None:
    examples = [example(5, "f:1"), replace(example(3, "f:2"), weights=[1.0, 0.5, 2.0])]
    assert [item["weights"] for item in BatchRows(examples, "padded", 8)] == [[1.0] * 5, [1.0, 0.5, 2.0]]
    assert BatchRows(examples, "packed", 8)[0]["weights"] == [1.0] * 6 + [0.5, 2.0]


def test_length_grouping_keeps_every_row_and_saves_padding() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 500) for _ in range(1003)]
    order = length_grouped_order(lengths, 8, seed=1)
    assert sorted(order) == list(range(1003))
    assert order == length_grouped_order(lengths, 8, seed=1) != length_grouped_order(lengths, 8, seed=2)
    assert max(lengths) in [lengths[index] for index in order[:8]]

    def padding(rows: list[int]) -> int:
        batches = [rows[at : at + 8] for at in range(0, len(rows), 8)]
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    assert padding(order) < 0.1 * padding(list(range(1003)))
    assert length_grouped_order([], 8, seed=1) == []


def test_filled_order_has_every_row_once_and_the_fillers_last() -> None:
    lengths = [1 + number * 7 % 13 for number in range(21)]
    plain, filled = (
        LengthGroupedSampler(lengths, 2, seed=3),
        FilledSampler(LengthGroupedSampler(lengths, 2, seed=3), 24),
    )
    orders = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        filled.set_epoch(epoch)
        orders.append(list(filled))
        assert orders[-1] == [*plain, 21, 22, 23]
    assert orders[0] != orders[1]
    assert len(filled) == 24


def test_joined_examples_keep_their_labels_and_have_weights_only_where_asked() -> None:
    one, other = example(2, "f:1"), replace(example(3, "f:2"), labels=[IGNORE_INDEX, 7, 8])
    assert joined([one, other]) == {
        "input_ids": one.input_ids + other.input_ids, "labels": [*one.labels, IGNORE_INDEX, 7, 8], "lengths": [2, 3],
        "origins": ["f:1", "f:2"],
    }  # fmt: skip


def test_one_that_does_not_fit_is_refused_among_shorter_ones() -> None:
    with pytest.raises(ValueError, match="an example of 9 tokens does not fit into 8"):
        pack([1, 9, 2], 8)


def test_fillers_teach_nothing() -> None:
    plain = {"input_ids": [0], "labels": [IGNORE_INDEX], "lengths": [1], "origins": []}
    assert filler(weighted=False) == plain
    assert filler(weighted=True) == plain | {"weights": [0.0]}
    assert filler(weighted=False)["labels"] == [IGNORE_INDEX]
    assert filler(weighted=False)["origins"] == []
    assert filler(weighted=True)["weights"] == [0.0]
