from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import (
    COLUMNS,
    FORMATS,
    FormatOptions,
    detect,
    nli_reference,
    rename,
    row_weight,
    strip_markers,
)
from tunesmith.data.nli import nli_answer, nli_prompt, nli_text
from tunesmith.data.row import Row
from tunesmith.errors import DataError


def row(**values: Any) -> Row:
    return Row(values, "f.jsonl", 17)


def read(name: str, values: dict[str, Any], **options: Any) -> Conversation:
    return FORMATS[name](row(**values), FormatOptions(**options))


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.messages]


def refusal(name: str, values: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(name, values, **options)
    assert str(caught.value).startswith("f.jsonl:17: ")
    return str(caught.value)


PAIR = [("user", "q"), ("assistant", "a")]
GOOD: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("text", {"text": "[INST] q [/INST] a "}, [("user", "[INST] q [/INST]"), ("assistant", " a ")]),
    ("prompt_completion", {"prompt": "q", "completion": "a", "id": 3}, PAIR),
    ("prompt_completion", {"prompt": "q", "response": "a"}, PAIR),
    ("prompt_completion", {"prompt": [{"role": "user", "content": "q"}],
                           "completion": [{"role": "assistant", "content": "a"}]}, PAIR),
    ("nli", {"premise": "P", "hypothesis": "H", "thought_process": "t", "predicted_label": 1},
     [("user", nli_prompt("P", "H")), ("assistant", '{"thought_process": "t", "predicted_label": 1}')]),
    ("messages", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                               {"role": "assistant", "content": "a"}]}, [("system", "s"), *PAIR]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
    ("sharegpt", {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                  "system": "s"}, [("system", "s"), *PAIR]),
    ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, [("user", "q\n\ni"), ("assistant", "a")]),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, PAIR),
    ("question_answer", {"question": "q", "answer": "a"}, PAIR),
    ("rag", {"prompt": "q", "completion": ["a", "b"], "query": "x", "answers": []}, PAIR),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "expected"), GOOD, ids=[case[0] for case in GOOD])
def test_each_shape_becomes_its_turns_and_is_detected(
    name: str, values: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert turns(read(name, values)) == expected
    assert detect(row(**values)) == name


def test_every_format_has_a_case() -> None:
    assert {name for name, _, _ in GOOD} == set(FORMATS) - {"tokenized"}  # no conversation: test_tokenized.py


REQUIRED = [(name, values, key) for name, values, _ in GOOD for key in values if key not in {"id", "input", "system"}]
NUMBERS_ARE_ANSWERS = {("alpaca", "output"), ("question_answer", "answer")}
"""Classes, grades and sums are numbers in tables; texts that are continued, and questions, are not."""
REQUIRED = [case for case in REQUIRED if not (case[0] == "rag" and case[2] in {"query", "answers"})]


@pytest.mark.parametrize(("name", "values", "key"), REQUIRED)
def test_missing_null_and_wrongly_typed_values_are_refused(name: str, values: dict[str, Any], key: str) -> None:
    without = {other: value for other, value in values.items() if other != key}
    said = refusal(name, without)
    assert f'no "{key}"' in said or key == "response"
    assert "columns" in said
    assert f'"{key}" is null' in refusal(name, values | {key: None})
    wrong = refusal(name, values | {key: {"a": 1}})
    assert "an object" in wrong or "not 0 (no entailment)" in wrong
    if (name, key) in NUMBERS_ARE_ANSWERS:
        assert turns(read(name, values | {key: 5}))[-1] == ("assistant", "5")
    else:
        assert key in refusal(name, values | {key: 5})


def test_a_sweep_of_required_keys_happened() -> None:
    assert len(REQUIRED) == 22


def test_markers_are_stripped_once() -> None:
    assert strip_markers("<s>[INST] q </s> \n", "<s>", "</s>") == ("[INST] q ", True)
    assert strip_markers("[INST] q </s></s>", "<s>", "</s>") == ("[INST] q </s>", False)
    assert strip_markers("q \n", None, "</s>") == ("q \n", False)


def test_text_splits_at_the_last_match_of_its_marker() -> None:
    assert turns(read("text", {"text": "a [/INST] b [/INST] c"}))[0][1] == "a [/INST] b [/INST]"
    assert turns(read("text", {"text": "Q: a A: b"}, completion_start="A:")) == [
        ("user", "Q: a A:"),
        ("assistant", " b"),
    ]


def test_text_without_marker_is_refused_unless_loss_is_on_all() -> None:
    said = refusal("text", {"text": "once upon a time"})
    assert "completion_start" in said
    assert "loss_on: all" in said
    assert turns(read("text", {"text": "once"}, whole_text=True)) == [("user", ""), ("assistant", "once")]
    asked = read("text", {"text": "once"}, whole_text=True, need_answer=False)
    assert turns(asked) == [("user", "once")], "what was learnt whole goes on after any text"


def test_text_with_doubled_begin_or_inner_end_token_is_refused() -> None:
    options = {"bos_token": "<s>", "eos_token": "</s>"}
    assert "twice" in refusal("text", {"text": "<s><s>[INST] q [/INST] a</s>"}, **options)
    assert "inside the completion" in refusal("text", {"text": "<s>[INST] q [/INST] a</s> b</s>"}, **options)


def test_inference_needs_no_answer() -> None:
    assert turns(read("prompt_completion", {"prompt": "q"}, need_answer=False)) == [("user", "q")]
    assert turns(read("nli", {"premise": "P", "hypothesis": "H"}, need_answer=False)) == [
        ("user", nli_prompt("P", "H"))
    ]
    assert detect(row(prompt="q")) == "prompt_completion"
    assert read("question_answer", {"question": "q"}, need_answer=False).answer is None


@pytest.mark.parametrize("label", [2, -1, "2", True, 0.0, "entailment", 1.5])
def test_a_label_that_is_not_0_or_1_is_refused(label: Any) -> None:
    values = {"premise": "P", "hypothesis": "H", "thought_process": "t", "predicted_label": label}
    assert "predicted_label" in refusal("nli", values)


def test_labels_from_csv_are_numbers() -> None:
    values = {"premise": "P", "hypothesis": "H", "thought_process": "t", "predicted_label": "1"}
    assert read("nli", values).answer == nli_answer("t", 1)


def test_the_gold_label_beats_the_predicted_one() -> None:
    base = {"premise": "P", "hypothesis": "H", "thought_process": "t", "predicted_label": 1}
    assert nli_reference(row(**base)) == nli_answer("t", 1)
    assert nli_reference(row(**base, true_label=0)) == nli_answer("t", 0)
    assert nli_reference(row(premise="P", hypothesis="H", label="1")) == nli_answer("", 1)
    assert nli_reference(row(premise="P", hypothesis="H")) is None


def test_the_documents_text() -> None:
    assert nli_text("P", "H", "step 1: é", 0) == (
        "<s>[INST] Premise: P\nHypothesis: H\n\nUse chain of thought reasoning to determine if the hypothesis is "
        "entailed by the premise. Provide your reasoning and the final label (0 or 1) in JSON format: "
        '{"thought_process": "...", "predicted_label": ...} [/INST] '
        '{"thought_process": "step 1: é", "predicted_label": 0} </s>'
    )


BAD_CHATS: list[tuple[list[Any] | Any, str]] = [
    ([], "empty array"),
    ("q", "must be a list of messages"),
    (["q"], "messages[0] must be an object"),
    ([{"role": "user", "content": "q"}], "no assistant turn"),
    ([{"role": "user", "content": "q"}, {"role": "robot", "content": "a"}], "messages[1].role is 'robot'"),
    ([{"content": "q"}], "messages[0].role is None"),
    ([{"role": "user", "content": None}], "messages[0].content is null"),
    ([{"role": "user"}], "messages[0].content is missing"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": "q"}, {"role": "user", "content": "r"}], "turns 0 and 1 are both from user"),
    (
        [{"role": "user", "content": "q"}, {"role": "system", "content": "r"}],
        "turn 1 is a system message in the middle",
    ),
]


@pytest.mark.parametrize(("messages", "problem"), BAD_CHATS, ids=[problem for _, problem in BAD_CHATS])
def test_bad_chats_name_row_and_turn(messages: Any, problem: str) -> None:
    assert problem in refusal("messages", {"messages": messages})


def test_tool_calls_may_have_no_content_and_words_after_the_last_answer_are_left_out() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    chat = [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "7"}]
    conversation = read("messages", {"messages": chat, "tools": [{"type": "function"}]})
    assert turns(conversation) == [("user", "q"), ("assistant", "")]
    assert conversation.messages[1].extra == {"tool_calls": call["tool_calls"]}
    assert len(conversation.tools) == 1


def test_list_answers_are_counted_and_empty_ones_refused() -> None:
    assert read("rag", {"prompt": "q", "completion": ["a", "b"]}).list_answer
    assert not read("rag", {"prompt": "q", "completion": ["a"]}).list_answer
    assert "empty list" in refusal("rag", {"prompt": "q", "completion": []})
    assert "must be a string" in refusal("rag", {"prompt": "q", "completion": [None]})


def test_columns_rename_without_losing_anything() -> None:
    renamed = rename(row(ask="q", say="a"), {"prompt": "ask", "completion": "say"})
    assert renamed.values == {"ask": "q", "say": "a", "prompt": "q", "completion": "a"}
    assert renamed.where == "f.jsonl:17"
    assert detect(renamed) == "prompt_completion"


def test_unknown_columns_name_what_was_found_and_expected() -> None:
    with pytest.raises(DataError) as caught:
        detect(row(foo="q"))
    assert '["foo"]' in str(caught.value)
    assert "completion + prompt" in str(caught.value)
    assert "columns" in str(caught.value)


def test_openai_messages_with_tool_calls_parts_and_a_developer() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "Three.", "weight": 0.5},
    ]
    conversation = FORMATS["messages"](Row({"messages": turns}, "f", 1), FormatOptions())
    assert [turn.role for turn in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[1].content == "one two"
    (made,) = conversation.messages[2].extra["tool_calls"]
    assert made["function"]["arguments"] == {"x": [1, "é"]}
    assert call["function"]["arguments"] == '{"x": [1, "é"]}'
    assert [turn.weight for turn in conversation.messages] == [1, 1, 1, 1, 0.5]
    assert "weight" not in conversation.messages[4].as_dict()


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"content": [{"type": "image_url", "image_url": "x"}]}, r"content\[0\] is of type 'image_url'"),
        ({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}, "not JSON: '{x'"),
        ({"content": "", "tool_calls": {"name": "f"}}, "must be a list of objects"),
        ({"content": "a", "weight": "heavy"}, "weight is 'heavy'"),
        ({"content": "a", "weight": True}, "weight is True"),
    ],
)
def test_turns_that_cannot_be_read(turn: dict[str, Any], words: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", **turn}]
    with pytest.raises(DataError, match=f"f:9: messages.1.*{words}"):
        FORMATS["messages"](Row({"messages": turns}, "f", 9), FormatOptions())


@pytest.mark.parametrize(("value", "weight"), [(None, 1.0), (0, 0.0), (2, 2.0), ("0.5", 0.5)])
def test_weight_of_a_row(value: Any, weight: float) -> None:
    assert row_weight(Row({"weight": value}, "f", 1)) == weight


@pytest.mark.parametrize("value", [-1, "x", "nan", float("inf"), [1], True])
def test_weights_that_are_none(value: Any) -> None:
    with pytest.raises(DataError, match="f:1: weight is"):
        row_weight(Row({"weight": value}, "f", 1))


def test_every_format_names_its_columns() -> None:
    assert COLUMNS.keys() == FORMATS.keys()
