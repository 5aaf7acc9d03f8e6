"""Rows of token ids: what is read of them, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder, build_examples
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.row import Row
from tunesmith.data.tokenized import read_tokens
from tunesmith.errors import ConfigError, DataError

TokenizerBase = PreTrainedTokenizerBase


def row(line: int = 1, **values: Any) -> Row:
    return Row(values, "f.jsonl", line)


def made(tokenizer: TokenizerBase, values: dict[str, Any], **chosen: Any) -> Example:
    (example,) = build_examples([row(**values)], ExampleBuilder(tokenizer, DataSection(**chosen)), Ledger())
    return example


@pytest.mark.parametrize(
    ("columns", "trained"),
    [
        ({"labels": [-100, -100, 7, 2]}, [7, 2]),
        ({"labels": [5, 6, 7, 2]}, [6, 7, 2]),  # nothing predicts the first token
        ({"labels": "[-100, 6, -100, 2]"}, [6, 2]),
        ({"completion_mask": [0, 0, 1, 1]}, [7, 2]),
        ({"assistant_masks": [False, True, False, True]}, [6, 2]),
        ({"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 0, 1, 1]}, [7, 2]),
        ({"completion_mask": [0, 1, 1, 1], "labels": [-100, -100, 7, 2]}, [7, 2]),
        ({"completion_mask": [0, 0, 1, 1], "attention_mask": [1, 1, 1, 1], "labels": None}, [7, 2]),
    ],
)
def test_each_column_that_says_what_carries_loss_is_obeyed(
    stories_tokenizer: TokenizerBase, columns: dict[str, Any], trained: list[int]
) -> None:
    example = made(stories_tokenizer, {"input_ids": [5, 6, 7, 2]} | columns)
    assert example.input_ids == [5, 6, 7, 2]
    assert [label for label in example.labels if label != IGNORE_INDEX] == trained


def test_padding_is_no_part_of_the_row(stories_tokenizer: TokenizerBase) -> None:
    for mask, ids in (([0, 0, 1, 1, 1], [9, 9, 5, 6, 2]), ([1, 1, 1, 0, 0], [5, 6, 2, 9, 9])):
        labels = [number if number in (6, 2) else -100 for number in ids]
        example = made(stories_tokenizer, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        assert (example.input_ids, example.labels) == ([5, 6, 2], [-100, 6, 2])


def test_rows_that_do_not_say_it_are_trained_whole_where_all_is_asked_for(stories_tokenizer: TokenizerBase) -> None:
    assert made(stories_tokenizer, {"input_ids": [5, 6, 7]}, loss_on="all").labels == [-100, 6, 7]
    with pytest.raises(DataError, match=r"f.jsonl:1: nothing says which tokens carry loss.*loss_on: all"):
        made(stories_tokenizer, {"input_ids": [5, 6, 7]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [5, 512, 2]}, r"input_ids\[1\] is 512, and the tokenizer knows ids from 0 to 511"),
        ({"input_ids": [5, -1, 2]}, r"input_ids\[1\] is -1"),
        ({"input_ids": [5, 6.0, 2]}, r"input_ids\[1\] must be an integer"),
        ({"input_ids": [5, True, 2]}, r"input_ids\[1\] must be an integer"),
        ({"input_ids": [5, None, 2]}, r"input_ids\[1\] must be an integer"),
        ({"input_ids": []}, "is an empty list"),
        ({"input_ids": None}, "is null"),
        ({"input_ids": "5 6 2"}, "must be a list of integers"),
        ({"input_ids": [[5, 6, 2]]}, r"input_ids\[0\] must be an integer"),
        ({"labels": [5, 6]}, "labels has 2 entries and input_ids has 3"),
        ({"labels": [6, 2, -100]}, r"labels\[0\] is 6, and the token is 5; labels are not shifted"),
        ({"labels": [-100, 9, 2]}, r"labels\[1\] is 9, and the token is 6; it is -100"),
        ({"labels": [-100, -100, -100]}, "not one token of this row would carry loss"),
        ({"completion_mask": [0, 2, 1]}, "completion_mask holds 2"),
        ({"completion_mask": [0, 1]}, "completion_mask has 2 entries"),
        ({"attention_mask": [1, 0, 1]}, "attention_mask hides tokens between others"),
        ({"attention_mask": [0, 0, 0]}, "attention_mask leaves no token"),
        ({"attention_mask": [1, 1, 0], "labels": [-100, 6, 2]}, "a token that attention_mask leaves out carries loss"),
        ({"seq_lengths": [2, 1]}, "seq_lengths says that several examples share the row"),
        ({"position_ids": [0, 1, 0]}, "position_ids says that several examples share the row"),
        ({"input_ids": [1, 1, 2]}, "begins with the begin token <s> twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_row(
    stories_tokenizer: TokenizerBase, columns: dict[str, Any], message: str
) -> None:
    ids = {"input_ids": [5, 6, 2]}
    told = {} if {"labels", "completion_mask"} & columns.keys() else {"completion_mask": [0, 1, 1]}
    with pytest.raises(DataError, match=f"^f.jsonl:1: .*{message}"):
        made(stories_tokenizer, ids | told | columns)


@pytest.mark.parametrize(
    "chosen",
    [
        {"template": "chatml"},
        {"instruction": "Be brief."},
        {"completion_start": "x"},
        {"train_thoughts": False},
        {"loss_on": "last_assistant"},
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "tokenized"])
def test_settings_that_decide_about_text_are_refused(
    stories_tokenizer: TokenizerBase, chosen: dict[str, Any], format_name: str
) -> None:
    with pytest.raises(ConfigError, match=rf"data.{next(iter(chosen))} = .*rows of input_ids are tokens already"):
        made(stories_tokenizer, {"input_ids": [5, 6], "labels": [-100, 6]}, format=format_name, **chosen)


def test_a_row_without_an_end_is_counted(stories_tokenizer: TokenizerBase) -> None:
    ledger = Ledger()
    rows = [row(1, input_ids=[5, 6, 2], labels=[-100, 6, 2]), row(2, input_ids=[5, 6, 2], labels=[-100, 6, -100])]
    build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), ledger)
    assert ledger.total().left_out == {"end tokens after the last token with loss": 1}


def test_policies_work_on_ids(stories_tokenizer: TokenizerBase) -> None:
    long = {"input_ids": [1, 5, 6, 7, 8, 2], "completion_mask": [0, 0, 0, 1, 1, 1]}
    assert made(stories_tokenizer, long, max_length=5, too_long="truncate_prompt").input_ids == [1, 6, 7, 8, 2]
    cut = made(stories_tokenizer, long, max_length=5, too_long="truncate_completion")
    assert (cut.input_ids, cut.labels) == ([1, 5, 6, 7, 2], [-100, -100, -100, 7, 2])
    endless = {"input_ids": [1, 5, 6, 7, 8, 9], "completion_mask": [0, 0, 0, 1, 1, 1]}
    with pytest.raises(DataError, match="a cut answer would have no end"):
        made(stories_tokenizer, endless, max_length=5, too_long="truncate_completion")
    pieces = build_examples(
        [row(input_ids=[1, 5, 6, 7])],
        ExampleBuilder(stories_tokenizer, DataSection(loss_on="all", max_length=3, too_long="split")),
        Ledger(),
    )
    assert [piece.input_ids for piece in pieces] == [[1, 5, 6], [1, 7]]
    ledger = Ledger()
    builder = ExampleBuilder(stories_tokenizer, DataSection(empty_completion="drop", max_dropped=1))
    nothing = row(1, input_ids=[5, 6], labels=[-100, -100])
    weightless = row(2, input_ids=[5, 6], labels=[-100, 6], weight=0)
    heavy = row(3, input_ids=[5, 6], labels=[-100, 6], weight=2)
    (kept,) = build_examples([nothing, weightless, heavy], builder, ledger)
    assert kept.weights == [2.0, 2.0]
    assert ledger.total().dropped == {"empty_completion": ["f.jsonl:1"], "weight_0": ["f.jsonl:2"]}


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(3, 511), min_size=2, max_size=12), data=st.data())
def test_ids_and_marks_come_out_as_they_went_in(
    stories_tokenizer: TokenizerBase, ids: list[int], data: st.DataObject
) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).filter(lambda told: any(told[1:])))
    example = made(stories_tokenizer, {"input_ids": ids, "completion_mask": mask})
    assert example.input_ids == ids
    assert [label != IGNORE_INDEX for label in example.labels[1:]] == mask[1:]
    builder = ExampleBuilder(stories_tokenizer, DataSection())
    prompt = builder.prompt(row(input_ids=ids, completion_mask=mask)).input_ids
    assert ids[: len(prompt)] == prompt
    assert len(prompt) == len(ids) or not any(mask[len(prompt) :]) or mask[len(prompt)]


def test_texts_are_the_same_as_ids(stories_tokenizer: TokenizerBase) -> None:
    """What the builder makes of text comes out of the builder again when it is given as ids."""
    builder = ExampleBuilder(stories_tokenizer, DataSection())
    text = row(prompt="Who is it?", completion=" A dog.")
    example = builder.example(text)
    assert example is not None
    given = row(input_ids=example.input_ids, labels=example.labels)
    other = ExampleBuilder(stories_tokenizer, DataSection())
    again = other.example(given)
    assert again is not None
    assert (again.input_ids, again.labels, again.num_prompt_tokens, again.num_head_tokens) == (
        example.input_ids, example.labels, example.num_prompt_tokens, example.num_head_tokens,
    )  # fmt: skip
    assert other.prompt(given).input_ids == builder.prompt(text).input_ids
    assert other.stop_token_ids(given) == builder.stop_token_ids(text)


def test_the_row_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs/how_to/rows.md").read_text(encoding="utf-8")
    (text,) = re.findall("```json\n(.*?)```", page, re.DOTALL)
    tokens = read_tokens(row(**json.loads(text)))
    assert tokens.trained == [False, False, False, True, True]
    assert tokens.prompt == [1, 733, 16289]
