"""Streams that are shuffled, mixed and packed: nothing is lost, and the same settings give the same rows again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers import story_rows, write_rows
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.masking import Example
from tunesmith.data.row import Row
from tunesmith.data.stream import ExampleStream, packed
from tunesmith.data.streamed import shuffled_within, streamed_rows
from tunesmith.errors import ConfigError


def numbered(number: int) -> list[Row]:
    return [Row({"prompt": f"q{line}", "completion": "a"}, "f", line) for line in range(number)]


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_a_buffer_loses_nothing_and_moves_no_row_further_ahead_than_its_size(size: int) -> None:
    rows = numbered(40)
    drawn = [row.line for row in shuffled_within(rows, size, "1")]
    assert sorted(drawn) == list(range(40))
    assert all(line - place < size for place, line in enumerate(drawn))
    assert drawn == [row.line for row in shuffled_within(rows, size, "1")]
    assert (drawn == list(range(40))) == (size == 1)
    if size > 1:
        assert drawn != [row.line for row in shuffled_within(rows, size, "2")]


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    big = [{"prompt": f"b{number}", "completion": "x"} for number in range(60)]
    small = [{"prompt": f"s{number}", "completion": "x"} for number in range(10)]
    return [write_rows(tmp_path / "big.jsonl", big), write_rows(tmp_path / "small.jsonl", small)]


def asked(data: DataSection, number: int = 0) -> list[str]:
    return [row.values["prompt"] for row in streamed_rows(data, number)]


@pytest.mark.parametrize("shuffle", [{}, {"shuffle_seed": 5, "shuffle_buffer": 4}])
def test_streams_are_mixed_as_data_in_memory_is(sources: list[str], shuffle: dict[str, Any]) -> None:
    first = DataSection(train_data=sources, mix_weights=[1.0, 1.0], streaming=True, **shuffle)
    drawn = asked(first)
    assert drawn == asked(first)
    assert max(Counter(drawn).values()) == 1, "until one is exhausted no row occurs twice"
    assert sum(text.startswith("s") for text in drawn) == 10
    both = first.model_copy(update={"mix_stop": "all_exhausted"})
    counted = Counter(asked(both))
    assert len(counted) == 70, "every row occurs"
    assert max(counted[f"b{number}"] for number in range(60)) == 1
    small = [counted[f"s{number}"] for number in range(10)]
    assert max(small) - min(small) <= 1, "what begins again goes through all its rows"
    assert asked(first.model_copy(update={"limit": 5})) == drawn[:5]
    with pytest.raises(ConfigError, match="mix_weights has 1 numbers"):
        asked(first.model_copy(update={"mix_weights": [1.0]}))


def test_each_pass_has_its_own_order(sources: list[str]) -> None:
    data = DataSection(train_data=sources[0], streaming=True, shuffle_seed=1, shuffle_buffer=16)
    assert sorted(asked(data, 0)) == sorted(asked(data, 1))
    assert asked(data, 0) != asked(data, 1) == asked(data, 1)
    plain = data.model_copy(update={"shuffle_seed": None})
    assert asked(plain, 0) == asked(plain, 1) == [f"b{number}" for number in range(60)]


def test_examples_of_a_stream_share_rows_and_keep_their_order(stories_tokenizer: Any) -> None:
    rows = [Row(values, "s", line) for line, values in enumerate(story_rows(9), start=1)]
    builder = ExampleBuilder(stories_tokenizer, DataSection())
    single = ExampleStream(lambda _: rows, builder, 27)
    examples = [single[index] for index in range(27)]
    lengths = [len(example.input_ids) for example in examples if isinstance(example, Example)]
    capacity = 2 * max(lengths) + 1
    stream = ExampleStream(lambda _: rows, builder, 5, pack_to=capacity)
    groups = [stream[index] for index in range(5)]
    flat = [example for group in groups if isinstance(group, list) for example in group]
    assert flat == examples[: len(flat)]
    assert all(sum(len(one.input_ids) for one in group) <= capacity for group in groups if isinstance(group, list))
    assert max(len(group) for group in groups if isinstance(group, list)) >= 2
    assert [stream[index] for index in (3, 0, 4)] == [groups[3], groups[0], groups[4]], "also after going back"
    assert [example for group in packed(examples[:4], 1) for example in group] == examples[:4]  # type: ignore[arg-type]
