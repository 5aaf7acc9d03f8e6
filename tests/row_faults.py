"""What the tests of rows share: rows with calls, templates, and how a verb ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOOLS_TEMPLATE = (
    "{{ bos_token }}{{ tools|tojson }}{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function|tojson }}{% endfor %}{{ eos_token }}"
    "{% else %}[U]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)


THINK_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content }}{{ eos_token }}"
    "{% else %}[U]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}"
)


DATE_TEMPLATE = (
    "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}. {% for m in messages %}{% if m.role == 'assistant' %}"
    "A: {{ m.content }}{{ eos_token }}{% else %}Q: {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)


@dataclass
class Outcome:
    """How a verb ended: exit code, errors, notes about rows, and the rows that preview shows."""

    code: int
    errors: list[str]
    notes: list[str]
    rows: list[dict[str, Any]]

    @property
    def texts(self) -> list[str]:
        return ["".join(token["text"] for token in row["tokens"]) for row in self.rows]

    @property
    def trained(self) -> list[str]:
        return ["".join(token["text"] for token in row["tokens"] if token["trained"]) for row in self.rows]


Call = Callable[..., Outcome]


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome
    assert len(outcome.errors) == 1, outcome
    for word in words:
        assert word in outcome.errors[0]


def asked(content: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str = "a", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def calls(name: str = "f", **arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CALL = [{"messages": [asked(), answer("", tool_calls=calls(x="1"))], "tools": [tool("f", x={"type": "string"})]}]
