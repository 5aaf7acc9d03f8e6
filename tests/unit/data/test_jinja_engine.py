"""What an engine says of templates, and the texts of many cuts of a long chat: the same in blocks as one by one."""

from __future__ import annotations

from typing import Any

import pytest

from template_cases import installed_templates
from tunesmith.data import jinja_engine
from tunesmith.data.jinja_engine import Engine

ENGINE = Engine()
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TODAY = "2026-01-02"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object",
        "properties": {"x": {"type": "string", "description": "e"}}}}}  # fmt: skip
FAMILIES = [
    "cohere2",
    "deepseekv3",
    "gemma3_training",
    "glm4moe_training",
    "gptoss",
    "llama3_2",
    "phi3",
    "qwen3_5_think",
]


def chat(number: int) -> list[dict[str, Any]]:
    """Questions and answers, some with thoughts."""
    made: list[dict[str, Any]] = [{"role": "system", "content": "S"}]
    for index in range(number):
        thought = {"reasoning_content": f"t{index}", "thinking": f"t{index}"} if index % 3 == 2 else {}
        made += [{"role": "user", "content": f"q{index}"}, {"role": "assistant", "content": f"a{index}"} | thought]
    return made


def agent(number: int) -> list[dict[str, Any]]:
    """One question, many calls."""
    made: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    for index in range(number):
        call = {"id": f"c{index:08}", "type": "function", "function": {"name": "f", "arguments": {"x": str(index)}}}
        made += [{"role": "assistant", "content": "", "tool_calls": [call]},
                 {"role": "tool", "name": "f", "tool_call_id": call["id"], "content": f"r{index}"}]  # fmt: skip
    return [*made, {"role": "assistant", "content": "done"}]


def cuts_of(turns: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    return [
        (len(turns), False),
        *((at, asked) for index in answers for at, asked in ((index, True), (index + 1, False))),
    ]


@pytest.mark.parametrize("turns", [chat(18), agent(18)], ids=["chat", "agent"])
@pytest.mark.parametrize("name", FAMILIES)
def test_cuts_of_a_long_chat_are_those_of_a_short_one(
    monkeypatch: pytest.MonkeyPatch, name: str, turns: list[dict[str, Any]]
) -> None:
    tools = [TOOL] if turns[1].get("tool_calls") else []

    def texts(long: int) -> jinja_engine.Shared:
        monkeypatch.setattr(jinja_engine, "LONG", long)
        return ENGINE.render(installed_templates()[name], VARIABLES, turns, tools, cuts_of(turns), TODAY)

    try:
        one_by_one = texts(10**6)
    except Exception as refusal:  # whatever a template raises
        with pytest.raises(type(refusal)):
            texts(0)
    else:
        assert texts(0) == one_by_one


@pytest.mark.parametrize("make", [chat, agent])
def test_work_grows_with_the_turns_and_not_with_their_square(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    def messages_rendered(number: int) -> int:
        rendered: list[int] = []
        engine = Engine()
        text = engine._text
        monkeypatch.setattr(engine, "_text", lambda *given: rendered.append(len(given[2])) or text(*given))
        turns = make(number)
        engine.render(installed_templates()["qwen3_instruct_2507_training"], {}, turns, [], cuts_of(turns))
        return sum(rendered)

    assert messages_rendered(120) < 2.2 * messages_rendered(60)


def test_a_chat_without_blocks_is_rendered_cut_by_cut() -> None:
    """A template that counts its turns from the end writes something else in a block than in the chat."""
    source = "{% for m in messages %}{{ messages|length - loop.index }}{{ m.content }};{% endfor %}"
    turns = chat(18)
    whole, found = ENGINE.render(source, {}, turns, [], cuts_of(turns))
    assert whole.startswith("36S;35q0;")
    assert found[0] == (0, "1S;0q0;")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{{ style }}{{ messages[0].role }}{# comment #}{{ 'text' }}", {"style"}),
        ("{% set style = style | default('x') %}{{ style }}", {"style"}),
        ("{% set style = 'x' %}{{ style }}", set()),
        ("{% if not style is defined %}{% set style = 1 %}{% endif %}{{ style }}", {"style"}),
        ("{% for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}{{ namespace(a=b) }}", {"b"}),
        ("{% macro f(x) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}", {"y"}),
        ("{{ tools }}{{ add_generation_prompt }}{{ strftime_now('%d') }}", set()),
        ("{% generation %}{{ inside }}{% endgeneration %}", {"inside"}),
        ("{% if", set()),
    ],
)
def test_names_that_a_template_reads(source: str, names: set[str]) -> None:
    assert ENGINE.names_read(source) == names
