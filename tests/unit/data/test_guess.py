"""What tables of somebody's own are taken for: odd names, several texts, numbers as labels, chats of any spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.data.formats import FORMATS, FormatOptions, rename
from tunesmith.data.guess import Shape, guess_shape, label_values
from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
SHAREGPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]


def rows_of(table: list[dict[str, Any]]) -> list[Row]:
    return [Row(values, "mine.csv", line) for line, values in enumerate(table, start=2)]


def same(number: int = 6, **columns: Any) -> list[Row]:
    """Rows whose texts are numbered, so that they differ; every other value as it is."""
    return rows_of(
        [
            {name: f"{value} {index}" if value == "words" else value for name, value in columns.items()}
            for index in range(number)
        ]
    )


def readable(shape: Shape, rows: list[Row]) -> str:
    """The first question and answer as the guessed format reads them."""
    options = FormatOptions(
        roles=shape.roles,  # type: ignore[arg-type]
        whole_text=shape.loss_on == "all",
        completion_start=shape.completion_start,
    )
    read = [FORMATS[shape.format](rename(row, shape.columns), options) for row in rows]
    return " | ".join(turn.content for turn in read[0].messages)


PAIRS: list[tuple[dict[str, Any], str, dict[str, str]]] = [
    ({"text": "words", "label": "a"}, "question_answer", {"question": "text", "answer": "label"}),
    ({"label": "a", "text": "words"}, "question_answer", {"question": "text", "answer": "label"}),
    ({"text": "words", "label": 1}, "question_answer", {"question": "text", "answer": "label"}),
    ({"Text": "words", "Sentiment": "a"}, "question_answer", {"question": "Text", "answer": "Sentiment"}),
    ({"id": "7", "review_body": "words", "star_label": "3"}, "question_answer",
     {"question": "review_body", "answer": "star_label"}),
    ({"question": "words", "answer": "words"}, "question_answer", {}),
    ({"prompt": "words", "completion": "words"}, "question_answer", {"question": "prompt", "answer": "completion"}),
    ({"prompt": "words", "response": "words"}, "question_answer", {"question": "prompt", "answer": "response"}),
    ({"customerMessage": "words", "agentReply": "words"}, "question_answer",
     {"question": "customerMessage", "answer": "agentReply"}),
    ({"source_text": "words", "translation": "words"}, "question_answer",
     {"question": "source_text", "answer": "translation"}),
    ({"text": "words", "label": 1, "label_text": "good"}, "question_answer",
     {"question": "text", "answer": "label_text"}),
    ({"instruction": "words", "input": "words", "output": "words"}, "alpaca", {}),
    ({"instruction": "words", "output": "words"}, "question_answer", {"question": "instruction", "answer": "output"}),
    ({"instruction": "words", "context": "words", "response": "words"}, "alpaca",
     {"input": "context", "output": "response"}),
    ({"title": "words", "body": "words", "category": "a"}, "alpaca",
     {"instruction": "title", "input": "body", "output": "category"}),
    ({"premise": "words", "hypothesis": "words", "label": 1}, "alpaca",
     {"instruction": "premise", "input": "hypothesis", "output": "label"}),
    ({"sentence1": "words", "sentence2": "words", "label": 1, "idx": 3}, "alpaca",
     {"instruction": "sentence1", "input": "sentence2", "output": "label"}),
    ({"human": "words", "bot": "words"}, "question_answer", {"question": "human", "answer": "bot"}),
    ({"article": "words", "highlights": "words"}, "question_answer", {"question": "article", "answer": "highlights"}),
    ({"Phrase": "words", "topic": "a"}, "question_answer", {"question": "Phrase", "answer": "topic"}),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "format_name", "renamed"), PAIRS, ids=[" ".join(pair[0]) for pair in PAIRS])
def test_pairs_by_their_names(columns: dict[str, Any], format_name: str, renamed: dict[str, str]) -> None:
    rows = same(**columns)
    shape = guess_shape(rows)
    assert (shape.format, shape.columns) == (format_name, renamed)
    assert "asked" in shape.why
    assert readable(shape, rows).startswith("words 0 | ") or format_name == "alpaca"


def test_unknown_names_are_told_apart_by_their_values() -> None:
    rows = rows_of([{"kolor": ["rot", "blau"][index % 2], "satz": f"ein Satz {index}"} for index in range(20)])
    assert guess_shape(rows).columns == {"question": "satz", "answer": "kolor"}


def test_prompts_that_say_where_the_answer_begins_stay_as_they_are() -> None:
    rows = rows_of([{"prompt": f"Q: {index}\nA:", "completion": f" {index}"} for index in range(4)])
    assert guess_shape(rows).format == "prompt_completion"


CHATS: list[tuple[dict[str, Any], str, dict[str, str]]] = [
    ({"messages": CHAT}, "messages", {}),
    ({"messages": json.dumps(CHAT)}, "messages", {}),
    ({"conversations": SHAREGPT}, "sharegpt", {}),
    ({"id": 3, "dialogue": SHAREGPT}, "messages", {"messages": "dialogue"}),
    ({"chat": json.dumps(SHAREGPT), "label": "x"}, "messages", {"messages": "chat"}),
    ({"chosen": CHAT, "rejected": CHAT}, "messages", {"messages": "chosen"}),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt_completion", {}),
]


@pytest.mark.parametrize(("columns", "format_name", "renamed"), CHATS, ids=[" ".join(chat[0]) for chat in CHATS])
def test_chats_of_every_spelling(columns: dict[str, Any], format_name: str, renamed: dict[str, str]) -> None:
    rows = same(**columns)
    shape = guess_shape(rows)
    assert (shape.format, shape.columns) == (format_name, renamed)
    assert readable(shape, rows) == "hello | hi"


def test_roles_of_other_names_are_translated() -> None:
    rows = same(turns=[{"role": "Customer", "content": "hello"}, {"role": "AGENT", "content": "hi"}])
    shape = guess_shape(rows)
    assert shape.roles == {"Customer": "user", "AGENT": "assistant"}
    assert readable(shape, rows) == "hello | hi"


def test_one_text_alone_is_learnt_whole_and_one_with_a_marker_behind_it() -> None:
    whole = guess_shape(same(story="words", id="7"))
    assert (whole.format, whole.columns, whole.loss_on) == ("text", {"text": "story"}, "all")
    marked = guess_shape(same(text="### Question: who? ### Answer: me"))
    assert (marked.completion_start, marked.loss_on) == ("### Answer:", "completion")


def test_flags_beat_the_guess() -> None:
    rows = same(text="words", note="words", label="a")
    assert guess_shape(rows, "note").columns == {"question": "note", "answer": "label"}
    assert guess_shape(rows, "note", "text").columns == {"question": "note", "answer": "text"}
    assert guess_shape(rows, answer="note").columns == {"question": "text", "answer": "note"}


def test_what_says_nothing_is_refused_with_all_columns_and_the_flags() -> None:
    rows = same(alpha="words", beta="words", gamma="words")
    with pytest.raises(DataError) as caught:
        guess_shape(rows)
    for word in ("alpha, beta, gamma", "--prompt COLUMN --answer COLUMN"):
        assert word in str(caught.value)
    for columns in ({"text": "words", "toxic": 1, "obscene": 0}, {"question": "words"}, {"a": "words", "b": "words"}):
        with pytest.raises(DataError, match="name them: --prompt COLUMN"):
            guess_shape(same(**columns))
    with pytest.raises(ConfigError, match="--prompt: no row has the column 'alfa'; did you mean 'alpha'"):
        guess_shape(rows, "alfa", "beta")
    with pytest.raises(ConfigError, match="both question and answer"):
        guess_shape(rows, "beta", "beta")


def test_columns_that_are_left_out_are_named() -> None:
    assert guess_shape(same(question="words", choices=["a", "b"], answer="a")).why.endswith("; not read: choices")


def test_labels_are_few_and_short() -> None:
    assert label_values(rows_of([{"y": index % 2} for index in range(6)]), "y") == ["0", "1"]
    assert label_values(rows_of([{"y": f"answer {index}"} for index in range(60)]), "y") is None
    assert label_values(rows_of([{"y": "one"} for _ in range(60)]), "y") is None
    with pytest.raises(DataError, match=r"mine\.csv:3.*null"):
        label_values(rows_of([{"y": "a"}, {"y": None}]), "y")


@pytest.mark.parametrize(("answer", "text"), [(3, "3"), (True, "true"), (1.5, "1.5")])
def test_numbers_are_answers(answer: Any, text: str) -> None:
    rows = same(question="words", answer=answer)
    assert readable(guess_shape(rows), rows).endswith(f"| {text}")
