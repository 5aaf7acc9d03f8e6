"""Examples made on request: the rows in their order, around and around, with one pass in the ledger."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import story_rows
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.data.selection import without_leaks
from tunesmith.data.stream import ExampleStream
from tunesmith.errors import DataError

ROWS = [Row(values, "s.jsonl", line) for line, values in enumerate(story_rows(7), start=1)]


@pytest.fixture
def builder(stories_tokenizer: Any) -> ExampleBuilder:
    return ExampleBuilder(stories_tokenizer, DataSection())


def test_the_rows_follow_in_order_and_begin_again(builder: ExampleBuilder) -> None:
    expected = [builder.example(row) for row in ROWS]
    stream = ExampleStream(lambda _: ROWS, builder, 20)
    assert len(stream) == 20
    assert [stream[index] for index in range(20)] == [expected[index % 7] for index in range(20)]
    assert stream.ledger.total().read == 7  # two more passes are not counted
    for index in (19, 3, 4, 0, 16):  # back, on, back, far on
        assert stream[index] == expected[index % 7]
    for index in (20, -1):
        with pytest.raises(IndexError):
            stream[index]
    assert pickle.loads(pickle.dumps(stream)) is not None


def test_no_more_is_read_than_a_chunk(builder: ExampleBuilder) -> None:
    read = 0

    def endless(_: int) -> Iterator[Row]:
        nonlocal read
        while True:
            read += 1
            yield Row({"prompt": f"Row {read}:", "completion": " yes."}, "s", read)

    stream = ExampleStream(endless, builder, 10**9)
    assert stream[0].origin == "s:1"
    assert read <= 512
    assert stream[600].origin == "s:601"
    assert read <= 1024


def test_rows_that_leave_nothing_stop_it(stories_tokenizer: Any) -> None:
    builder = ExampleBuilder(stories_tokenizer, DataSection(max_length=4, too_long="drop"))
    with pytest.raises(DataError, match="no examples are left of 7 rows"):
        ExampleStream(lambda _: ROWS, builder, 3)[0]


def test_a_leak_stops_at_its_row_or_is_said(builder: ExampleBuilder) -> None:
    from tunesmith import notices

    held = [Row(ROWS[4].values, "eval.jsonl", 1)]
    rows = without_leaks(ROWS, held, builder, allow=False)
    assert [next(rows) for _ in range(4)] == ROWS[:4]
    with pytest.raises(DataError, match=r"eval.jsonl:1 = s.jsonl:5"):
        next(rows)
    notices.clear()
    assert list(without_leaks(ROWS, held, builder, allow=True)) == ROWS
    assert any("allow_leak is set" in text for text in notices.collected())
    assert list(without_leaks(ROWS, [], builder, allow=False)) == ROWS
