"""Every spelling of a chat becomes the same messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.data.conversation import Message
from tunesmith.data.formats import FORMATS, FormatOptions
from tunesmith.data.row import Row
from tunesmith.data.turns import ROLES, read_tools
from tunesmith.errors import DataError


def read(name: str, options: dict[str, Any] | None = None, **values: Any) -> tuple[Message, ...]:
    return FORMATS[name](Row(values, "f.jsonl", 3), FormatOptions(**(options or {}))).messages


def refusal(name: str, options: dict[str, Any] | None = None, **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(name, options, **values)
    assert str(caught.value).startswith("f.jsonl:3: ")
    return str(caught.value)


def turn(role: str, content: Any = "x", **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
BARE = {"type": "function", "function": CALL["function"]}
TEXT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
EXPECTED = (
    Message("user", "q"),
    Message("assistant", "", {"tool_calls": [CALL]}),
    Message("tool", "R", {"tool_call_id": "c1"}),
    Message("assistant", "a"),
)
WITHOUT_ID = (EXPECTED[0], Message("assistant", "", {"tool_calls": [BARE]}), Message("tool", "R"), EXPECTED[3])


def test_openai() -> None:
    turns = [
        turn("user", "q"),
        turn("assistant", None, tool_calls=[TEXT_CALL]),
        turn("tool", [{"type": "text", "text": "R"}], tool_call_id="c1"),
        turn("assistant", "a"),
    ]
    assert read("messages", messages=turns) == EXPECTED
    assert read("messages", messages=json.dumps(turns)) == EXPECTED


def test_openai_functions() -> None:
    turns = [
        turn("user", "q"),
        turn("assistant", None, function_call={"name": "f", "arguments": '{"x": 1}'}),
        turn("function", "R"),
        turn("assistant", "a"),
    ]
    assert read("messages", messages=turns) == WITHOUT_ID
    schema = {"name": "f", "parameters": {"type": "object"}}
    assert read_tools(Row({"functions": [schema]}, "f", 1)) == ({"type": "function", "function": schema},)


def test_anthropic() -> None:
    turns = [
        turn("user", [{"type": "text", "text": "q"}]),
        turn("assistant", [{"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}]),
        turn("user", [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "R"}]}]),
        turn("assistant", "a"),
    ]
    assert read("messages", messages=turns) == EXPECTED
    system = [{"type": "text", "text": "S"}]
    assert read("messages", messages=turns, system=system) == (Message("system", "S"), *EXPECTED)
    tools = [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    (tool,) = read_tools(Row({"tools": tools}, "f", 1))
    assert tool["function"] == {"name": "f", "description": "d", "parameters": {"type": "object"}}
    mixed = [
        turn("user", [{"type": "tool_result", "content": "R"}, {"type": "text", "text": "and"}]),
        turn("assistant"),
    ]
    assert [(one.role, one.content) for one in read("messages", messages=mixed)][:2] == [("tool", "R"), ("user", "and")]


@pytest.mark.parametrize(("call", "result"), [("function_call", "observation"), ("tool_call", "tool_response")])
def test_sharegpt(call: str, result: str) -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": call, "value": json.dumps({"name": "f", "arguments": {"x": 1}})},
        {"from": result, "value": "R"},
        {"from": "gpt", "value": "a"},
    ]
    assert read("sharegpt", conversations=turns) == WITHOUT_ID
    assert "without the name" in refusal("sharegpt", conversations=[{**turns[1], "value": "{}"}])


def test_tools_may_be_texts() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools), [json.dumps(tools[0])]):
        assert read_tools(Row({"tools": given}, "f", 1)) == tuple(tools)
    assert read_tools(Row({"tools": None}, "f", 1)) == ()


def test_every_name_of_a_role_and_the_settings_own() -> None:
    for name in ROLES:
        for key in ("role", "from"):
            other = {"role": "content", "from": "value"}[key]
            content = '{"name": "f"}' if ROLES[name] == "call" else "x"
            read("messages", {"turn_order": "keep"}, messages=[{key: name, other: content}, turn("assistant")])
    assert "roles" in refusal("messages", messages=[turn("bot"), turn("assistant")])
    named = read("messages", {"roles": {"bot": "assistant", "guest": "user"}}, messages=[turn("guest"), turn("bot")])
    assert [one.role for one in named] == ["user", "assistant"]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_are_one_thing(name: str) -> None:
    expected = (Message("user", "x"), Message("assistant", "a", {"reasoning_content": "T"}))
    assert read("messages", messages=[turn("user"), turn("assistant", "a", **{name: "T"})]) == expected
    parts = [{"type": "thinking", "thinking": "T"}, {"type": "text", "text": "a"}]
    assert read("messages", messages=[turn("user"), turn("assistant", parts)]) == expected
    other = "reasoning" if name != "reasoning" else "thinking"
    both = turn("assistant", "a", **{name: "T", other: "T"})
    assert read("messages", messages=[turn("user"), both]) == expected
    assert "different thoughts" in refusal("messages", messages=[turn("user"), both | {other: "U"}])


def test_system_beside_messages() -> None:
    turns = [turn("user"), turn("assistant")]
    for values in ({"system": "S"}, {"system": [{"type": "text", "text": "S"}]}):
        assert read("messages", messages=turns, **values)[0] == Message("system", "S")
    assert len(read("messages", messages=[turn("system", "S"), *turns], system="S")) == 3
    assert "two system messages" in refusal("messages", messages=[turn("system", "S"), *turns], system="T")
    assert read("question_answer", question="q", answer="a", system="S")[0] == Message("system", "S")
    assert read("messages", messages=turns, system=None) == read("messages", messages=turns)


ODD: dict[str, list[dict[str, Any]]] = {
    "both from user": [turn("user", "a"), turn("user", "b"), turn("assistant", "c")],
    "both from assistant": [turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")],
    "system message in the middle": [turn("user", "a"), turn("system", "b"), turn("assistant", "c")],
    "begins with the assistant": [turn("assistant", "a"), turn("user", "b"), turn("assistant", "c")],
}
MERGED = {
    "both from user": [("user", "a\n\nb"), ("assistant", "c")],
    "both from assistant": [("user", "a"), ("assistant", "b\n\nc")],
    "system message in the middle": [("system", "b"), ("user", "a"), ("assistant", "c")],
}


@pytest.mark.parametrize("what", ODD)
def test_unusual_orders_follow_their_setting(what: str) -> None:
    said = refusal("messages", messages=ODD[what])
    assert what in said
    assert "turn_order" in said
    assert read("messages", {"turn_order": "keep"}, messages=ODD[what]) == tuple(
        Message(one["role"], one["content"]) for one in ODD[what]
    )
    if what in MERGED:
        merged = read("messages", {"turn_order": "merge"}, messages=ODD[what])
        assert [(one.role, one.content) for one in merged] == MERGED[what]
    else:
        assert what in refusal("messages", {"turn_order": "merge"}, messages=ODD[what])


def test_merged_turns_keep_all_that_they_hold() -> None:
    first = turn("assistant", "a", tool_calls=[TEXT_CALL], reasoning="T")
    second = turn("assistant", "b", tool_calls=[BARE], reasoning="U")
    *_, merged = read("messages", {"turn_order": "merge"}, messages=[turn("user"), first, second])
    assert merged == Message("assistant", "a\n\nb", {"tool_calls": [CALL, BARE], "reasoning_content": "T\n\nU"})
    unlike = [turn("user"), first | {"weight": 0}, second]
    assert "not trained alike" in refusal("messages", {"turn_order": "merge"}, messages=unlike)
    named = [turn("user", name="x"), turn("user", name="y"), turn("assistant")]
    assert "differ in name" in refusal("messages", {"turn_order": "merge"}, messages=named)


def assistant(*parts: dict[str, Any], **keys: Any) -> list[dict[str, Any]]:
    return [turn("user", "q"), turn("assistant", list(parts), **keys)]


WORDS, THINKING = {"type": "text", "text": "a"}, {"type": "thinking", "thinking": "t"}
USE = {"type": "tool_use", "name": "f", "input": {}}


def test_keys_of_parts_become_keys_of_the_message() -> None:
    cited = WORDS | {"citations": ["c"], "cache_control": {"type": "ephemeral"}, "annotations": [], "logprobs": None}
    (_, answer) = read("messages", messages=assistant(THINKING | {"signature": "s"}, cited))
    assert answer.content == "a"
    assert answer.extra == {
        "reasoning_content": "t",
        "signature of content": "s",
        "citations of content": ["c"],
        "cache_control of content": {"type": "ephemeral"},
    }
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "R"}
    for said, extra in ((True, {"is_error of content": True}), (False, {}), (None, {})):
        turns = [*assistant(USE), turn("user", [result | {"is_error": said}]), turn("assistant", "a")]
        assert read("messages", messages=turns)[2] == Message("tool", "R", {"tool_call_id": "c1"} | extra)


@pytest.mark.parametrize("parts", [(USE, WORDS), (WORDS, THINKING), (THINKING, USE, WORDS), (WORDS, USE, WORDS)])
def test_parts_in_an_order_that_no_template_writes_are_refused(parts: tuple[dict[str, Any], ...]) -> None:
    assert "parts in the order" in refusal("messages", messages=assistant(*parts))


def test_blank_text_between_parts_is_no_text() -> None:
    assert read("messages", messages=assistant(USE, {"type": "text", "text": "\n"}))[1].extra["tool_calls"]


@pytest.mark.parametrize("name", ["arguments", "args", "parameters", "input"])
@pytest.mark.parametrize("given", [{"x": 1}, '{"x": 1}'])
def test_arguments_by_every_name(name: str, given: Any) -> None:
    for call in (
        {"name": "f", name: given, "type": "tool_call"},
        {"type": "function", "function": {"name": "f", name: given}},
    ):
        (_, answer) = read("messages", messages=[turn("user"), turn("assistant", "", tool_calls=[call])])
        assert answer.extra["tool_calls"] == [BARE]


def test_arguments_by_two_names_are_refused() -> None:
    call = {"name": "f", "arguments": {"x": 1}, "input": {"x": 2}}
    turns = [turn("user"), turn("assistant", "", tool_calls=[call])]
    assert "arguments and input" in refusal("messages", messages=turns)


def test_a_function_call_as_text() -> None:
    turns = [turn("user"), turn("assistant", None, function_call='{"name": "f", "arguments": {"x": 1}}')]
    assert read("messages", messages=turns)[1].extra == {"tool_calls": [BARE]}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_a_table_holds_and_json_does_not(number: float) -> None:
    call = {"name": "f", "arguments": {"x": [number]}}
    assert "not JSON" in refusal("messages", messages=[turn("user"), turn("assistant", "", tool_calls=[call])])
    assert "not JSON" in refusal("messages", messages=[turn("user"), turn("assistant", meta={"x": number})])
    with pytest.raises(DataError, match="tools holds the number"):
        read_tools(Row({"tools": [{"name": "f", "parameters": {"minimum": number}}]}, "f.jsonl", 3))


def test_a_turn_of_others_may_say_that_it_is_not_trained() -> None:
    for mark in ({"weight": 0}, {"train": False}, {"weight": 0.0, "loss": 0}):
        asked, _ = read("messages", messages=[turn("user", "q", **mark), turn("assistant", "a")])
        assert (asked.content, asked.extra) == ("q", {})
    assert "only answers have one" in refusal("messages", messages=[turn("user", weight=1), turn("assistant")])


def test_questions_of_prompt_and_completion_are_merged() -> None:
    row = {"prompt": [turn("user", "one")], "completion": [turn("user", "two"), turn("assistant", "a")]}
    assert read("prompt_completion", {"turn_order": "merge"}, **row)[0].content == "one\n\ntwo"


def test_messages_of_a_prompt_as_json_text() -> None:
    row = {"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")]}
    told = {name: json.dumps(value) for name, value in row.items()}
    assert read("prompt_completion", **told) == read("prompt_completion", **row)
    assert "not JSON" in refusal("prompt_completion", **{name: str(value) for name, value in row.items()})
    plain = {"prompt": '[{"x": 1}]', "completion": "[1]"}
    assert [message.content for message in read("prompt_completion", **plain)] == ['[{"x": 1}]', "[1]"]
