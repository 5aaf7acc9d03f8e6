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
