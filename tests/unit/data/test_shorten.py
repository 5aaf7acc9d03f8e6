"""What is cut of rows that are too long: never a header, never the system message, never without a word."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX, Example, TooLongError
from tunesmith.data.row import Row
from tunesmith.data.shorten import TURNS, WORDS, shorten
from tunesmith.errors import DataError


def chat(*turns: str) -> Conversation:
    """Turns as ``u: words``, ``a: words``, ``s: words`` or ``t: words``."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Conversation(tuple(Message(roles[turn[0]], turn[3:]) for turn in turns))


def length(conversation: Conversation) -> int:
    """Ten tokens for each turn and one for each word, as templates with headers count."""
    return sum(10 + len(turn.content.split()) for turn in conversation.messages)


def texts(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.messages]


LONG = chat("s: rules", "u: one", "a: 1", "t: 1b", "a: 1c", "u: two", "a: 2", "u: three four five", "a: 3")


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (200, ["rules", "one", "1", "1b", "1c", "two", "2", "three four five", "3"]),
        (100, ["rules", "two", "2", "three four five", "3"]),
        (57, ["rules", "two", "2", "three four five", "3"]),
        (56, ["rules", "three four five", "3"]),
        (35, ["rules", "three four five", "3"]),
        (34, ["rules", "four five", "3"]),
        (32, ["rules", "", "3"]),
    ],
)
def test_the_oldest_turns_go_first_and_then_words(limit: int, left: list[str]) -> None:
    made, cut = shorten(LONG, length, limit, "f:1")
    assert texts(made) == left
    assert made.messages[1].role == "user"
    assert cut == (WORDS if limit < 35 else TURNS)


def test_what_cannot_be_cut_is_too_long() -> None:
    with pytest.raises(TooLongError) as caught:
        shorten(LONG, length, 31, "f:1")
    assert caught.value.needed == 32


def test_an_answer_that_is_trained_stays() -> None:
    turns = chat("u: a", "a: b", "u: c", "a: d").messages
    silent = Conversation((*turns[:3], Message("assistant", "d", weight=0.0)))
    with pytest.raises(TooLongError):
        shorten(silent, length, 25, "f:1")


def example(tokenizer: Any, values: dict[str, Any], ledger: Ledger | None = None, **settings: Any) -> Example:
    made = ExampleBuilder(tokenizer, DataSection(**settings)).example(Row(values, "f", 1), ledger)
    assert made is not None
    return made


@pytest.mark.parametrize("template", ["chatml", "llama-3", "zephyr", "plain", "phi-3"])
def test_headers_and_the_system_message_stay(stories_tokenizer: Any, template: str, clean_notices: None) -> None:
    asked = "one two three four five six seven eight nine ten"
    turns = [("system", "be kind"), ("user", asked), ("assistant", "ok")]
    values = {"messages": [{"role": role, "content": content} for role, content in turns]}
    whole = example(stories_tokenizer, values, template=template)
    ledger = Ledger()
    limit = whole.full_length - 6
    made = example(stories_tokenizer, values, ledger, template=template, too_long="truncate_prompt", max_length=limit)
    text, full = stories_tokenizer.decode(made.input_ids), stories_tokenizer.decode(whole.input_ids)
    assert len(made.input_ids) <= limit
    before, _, after = full.partition(asked)
    assert text.startswith(before), "the system message and the header of the question"
    assert text.endswith(after)
    words = text.removeprefix(before).removesuffix(after)
    assert asked.endswith(words)
    assert words.startswith(("two", "three", "four", "five"))
    assert ledger.total().cut == {"truncate_prompt": ["f:1"]}
    ledger.say_what_stands_out()
    assert any("1 rows are longer than max_length and lose the beginning of their prompt: f:1" in said
               for said in notices.collected())  # fmt: skip


def test_turns_that_are_left_out_are_counted(stories_tokenizer: Any) -> None:
    turns = [{"role": "user" if number % 2 == 0 else "assistant", "content": f"turn {number}"} for number in range(8)]
    whole = example(stories_tokenizer, {"messages": turns}, template="chatml")
    ledger = Ledger()
    made = example(
        stories_tokenizer, {"messages": turns}, ledger, template="chatml", too_long="truncate_prompt",
        max_length=whole.full_length // 2,
    )  # fmt: skip
    alone = example(stories_tokenizer, {"messages": turns[4:]}, template="chatml")
    assert (made.input_ids, made.labels) == (alone.input_ids, alone.labels)
    assert (made.cut, made.full_length) == ("turns", whole.full_length)
    assert ledger.total().cut == {"turns": ["f:1"]}


@pytest.mark.parametrize("tokenizer_name", ["stories_tokenizer", "gpt2_tokenizer"])
@pytest.mark.parametrize("limit", [2, 3, 7, 16, 1000])
def test_a_long_text_is_split_and_no_token_is_lost(
    tokenizer_name: str, limit: int, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(tokenizer_name)
    row = Row({"text": "Once upon a time there was a dog that ran. " * 3, "weight": 2}, "f", 1)
    settings: dict[str, Any] = {"loss_on": "all", "format": "text"}
    (whole,) = ExampleBuilder(tokenizer, DataSection(**settings)).examples([row], Ledger())
    ledger = Ledger()
    builder = ExampleBuilder(tokenizer, DataSection(max_length=limit, too_long="split", **settings))
    pieces = list(builder.examples([row], ledger))
    assert all(len(piece.input_ids) == len(piece.labels) <= limit for piece in pieces)
    trained = [label for piece in pieces for label in piece.labels if label != IGNORE_INDEX]
    assert trained == [label for label in whole.labels if label != IGNORE_INDEX]
    assert all(label in (IGNORE_INDEX, token) for piece in pieces for token, label in
               zip(piece.input_ids, piece.labels, strict=True))  # fmt: skip
    account = ledger.total()
    assert (account.kept, account.pieces, account.read) == (1, len(pieces) - 1, 1)
    assert account.trained_tokens == whole.num_trained_tokens
    assert account.cut == ({"split": ["f:1"]} if len(pieces) > 1 else {})


def test_only_plain_text_is_split(stories_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="only plain text is split"):
        example(stories_tokenizer, {"prompt": "Once " * 50, "completion": "a"}, too_long="split", max_length=20)
