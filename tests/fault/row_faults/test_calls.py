"""Tools, calls and results: each of their parts is written, or the row is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from row_faults import CALL, TOOLS_TEMPLATE, Call, answer, asked, calls, refused, tool


@pytest.mark.parametrize("verb", ["preview", "check", "train"])
def test_a_template_that_writes_no_tool_calls_is_refused(call: Call, verb: str) -> None:
    refused(call(CALL, verb, template="chatml"), 3, "rows.jsonl:1", "tools", "tool_calls of turn 1", "unwritten")


def test_the_parts_of_a_call_are_refused_one_by_one(call: Call, v3: Path) -> None:
    refused(call(CALL, tokenizer_name_or_path=v3), 3, "tool_calls of turn 1")
    result = [
        {"messages": [asked(), answer("", tool_calls=calls(x="1")), {"role": "tool", "content": "RES"}, answer()]}
    ]
    refused(call(result, template="chatml"), 3, "tool_calls of turn 1")
    listed = [{"messages": [asked(), answer()], "tools": CALL[0]["tools"]}]
    refused(call(listed, template="chatml"), 3, "write tools;")
    refused(call(listed, template="question-answer"), 3, "write tools;")


def test_of_named_templates_the_one_for_tools_is_taken(call: Call, v3: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(v3)
    plain = TOOLS_TEMPLATE.replace("{{ tools|tojson }}", "").replace("{{ c.function|tojson }}", "")
    tokenizer.chat_template = {"default": plain, "tool_use": TOOLS_TEMPLATE}
    tokenizer.save_pretrained(tmp_path / "named")
    found = call([*CALL, {"messages": [asked(), answer()]}], tokenizer_name_or_path=tmp_path / "named")
    assert sorted(found.trained) == ["a</s>", '{"name": "f", "arguments": {"x": "1"}}</s>']


def test_the_details_of_tools_and_calls_are_looked_for(call: Call, template: Callable[[str], Path]) -> None:
    """A template may write the name of a function and not what it takes."""
    names = TOOLS_TEMPLATE.replace("c.function|tojson", "c.function.name")
    for arguments in ({"x": 1}, {"flag": True}, {"x": "text"}):
        row = {"messages": [asked(), answer("", tool_calls=calls(**arguments))]}
        refused(call([row], template=template(names)), 3, "tool_calls of turn 1")
    brief = TOOLS_TEMPLATE.replace(
        "{{ tools|tojson }}",
        "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters.properties.keys()|join }}{% endfor %}",
    )
    for schema, words in (
        ({"type": "string", "description": "D"}, "description of parameters in tools"),
        ({"type": "string", "enum": ["E", "F"]}, "enum of parameters in tools"),
        ({"type": "object", "properties": {"deep": {"type": "string"}}}, "names of parameters in tools"),
    ):
        row = {"messages": [asked(), answer()], "tools": [tool("f", x=schema)]}
        refused(call([row], template=template(brief)), 3, words)
    row = {"messages": [asked(), answer()], "tools": [tool("f", x={"type": "integer", "title": "T", "minimum": 3})]}
    counted = call([row], template=template(brief))
    assert counted.code == 0
    assert [word for word in ("title", "minimum") if f"{word} of parameters in tools" in "".join(counted.notes)] == [
        "title", "minimum"]  # fmt: skip


def test_keys_that_parquet_adds_are_not_trained(call: Call, tmp_path: Path, template: Callable[[str], Path]) -> None:
    tools = [tool("f", x={"type": "string"}), tool("g", n={"type": "integer"})]
    rows = [
        {"messages": [asked("go"), answer("", tool_calls=[{"function": {"name": name, "arguments": arguments}}])],
         "tools": tools} for name, arguments in (("f", {"x": "1"}), ("g", {"n": 2}))
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    path = template(TOOLS_TEMPLATE)
    lines, table = call(rows, template=path), call(tmp_path / "rows.parquet", template=path)
    assert lines.texts == table.texts
    assert len(lines.texts) == 2
    assert "null" not in "".join(table.texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"x": NaN, "y": 1}', "NaN"), ('{"x": "\\ud83d"}', "surrogate"), ('{"x": 1, "x": 2}', "twice"),
        ('{"x": 1e999}', "beyond"),
        ("[1]", "an array"), ("text", "a string"), ("3", "a string"), ('{"x": ', "not JSON"), ("{" * 200, "not JSON"),
    ],
)  # fmt: skip
def test_arguments_as_text_are_read_strictly(
    call: Call, template: Callable[[str], Path], arguments: str, words: str
) -> None:
    row = {"messages": [asked(), answer("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])]}
    refused(call([row], template=template(TOOLS_TEMPLATE)), 3, "rows.jsonl:1", words)


@pytest.mark.parametrize("verb", ["preview", "check", "train"])
def test_a_call_that_names_a_parameter_does_not_stand_for_the_list_of_tools(
    call: Call, template: Callable[[str], Path], verb: str
) -> None:
    """All verbs agree, also the one that looks at the prompt alone."""
    unguarded = TOOLS_TEMPLATE.replace("{{ tools|tojson }}", "{% for t in tools %}{{ t.function.name }}{% endfor %}")
    refused(call(CALL, verb, template=template(unguarded)), 3, "rows.jsonl:1", "names of parameters in tools")


def test_the_list_of_tools_does_not_stand_for_a_call(call: Call, template: Callable[[str], Path]) -> None:
    bare = [{"messages": [asked(), answer("", tool_calls=calls())], "tools": [tool("f")]}]
    assert call(bare, template=template(TOOLS_TEMPLATE)).code == 0
    listed = template(TOOLS_TEMPLATE.replace("{{ c.function|tojson }}", "a call"))
    refused(call(bare, template=listed), 3, "tool_calls of turn 1")
    called = template(TOOLS_TEMPLATE.replace("{{ tools|tojson }}", ""))
    refused(call(bare, template=called), 3, "write tools;")
