"""Where generation stops, and templates that ask for more than questions and answers."""

from __future__ import annotations

from typing import Any

import pytest

from template_cases import byte_tokenizer
from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row

UNGUARDED = (
    "{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "A:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }};{% endfor %}"
    "{% if m.tool_calls %}<|call|>{% else %}<|end|>{% endif %}{% else %}Q:{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('a system message comes first') }}{% endif %}"
DOCUMENTS = "{% for d in documents %}{{ d.text }}{% endfor %}"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def builder(template: str, **settings: Any) -> ExampleBuilder:
    tokenizer = byte_tokenizer(["<|call|>", "<|end|>"])
    tokenizer.chat_template = template
    return ExampleBuilder(tokenizer, DataSection(**{"format": "messages", "template": "chat"} | settings))


def chat(*system: dict[str, Any], **columns: Any) -> Row:
    turns = [*system, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return Row({"messages": turns, **columns}, "rows.jsonl", 1)


@pytest.mark.parametrize(
    ("template", "row", "settings"),
    [
        (UNGUARDED, chat(tools=TOOLS), {}),
        (SYSTEM + UNGUARDED, chat({"role": "system", "content": "s"}, tools=TOOLS), {}),
        (DOCUMENTS + UNGUARDED, chat(tools=TOOLS), {"chat_template_kwargs": {"documents": [{"text": "d"}]}}),
        (DOCUMENTS + UNGUARDED, chat(tools=TOOLS, chat_template_kwargs={"documents": [{"text": "d"}]}), {}),
        ("{{ strftime_now('%Y') }}" + UNGUARDED, chat(tools=TOOLS), {}),
    ],
)
def test_a_template_is_asked_with_what_it_demands(template: str, row: Row, settings: dict[str, Any]) -> None:
    made = builder(template, **settings)
    assert made.example(row) is not None
    names = made.tokenizer.convert_ids_to_tokens(made.stop_token_ids(row))
    assert names == ["<|end|>", "<|call|>", "</s>"]


def test_a_mark_of_each_call_is_no_stop() -> None:
    made = builder(UNGUARDED.replace("};{%", "}<|call|>{%"))
    assert made.tokenizer.convert_ids_to_tokens(made.stop_token_ids(chat(tools=TOOLS))) == ["<|end|>", "</s>"]


def test_a_row_without_tools_stops_at_the_end_of_a_turn() -> None:
    made = builder(UNGUARDED.replace("in tools %}", "in tools or [] %}"))
    assert made.tokenizer.convert_ids_to_tokens(made.stop_token_ids(chat())) == ["<|end|>", "</s>"]
    text = ExampleBuilder(made.tokenizer, DataSection())
    assert text.stop_token_ids(Row({"prompt": "q", "completion": "a"}, "f", 1)) == [made.tokenizer.eos_token_id]


@pytest.mark.parametrize("demand", [UNGUARDED[: UNGUARDED.index("{% for m")], SYSTEM])
@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ("{{ m.content }}<|end|>", None),
        ("{{ m.content[0].text }}<|end|>", None),
        ("{{ m.content|trim }}<|end|>", "trims answers"),
        ("", "does not write the assistant's words"),
    ],
)
def test_what_a_template_does_is_found_whatever_it_demands(demand: str, turns: str, problem: str | None) -> None:
    """A question and an answer alone are refused; what else is known of templates is known of these, too."""
    notices.clear()
    template = demand + "{% for m in messages %}" + turns + "{% endfor %}"
    row = chat(*([{"role": "system", "content": "s"}] if demand == SYSTEM else []), tools=TOOLS)
    if problem is not None and "words" in problem:
        with pytest.raises(Exception, match=problem):
            builder(template).stop_token_ids(row)
        return
    made = builder(template, unwritten="report")
    example = made.example(row)
    assert example is not None
    assert made.tokenizer.decode(example.input_ids).endswith("a<|end|>")
    assert any("trims answers" in text for text in notices.collected()) == (problem is not None)
