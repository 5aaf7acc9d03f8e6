"""What every format becomes before it is text: messages with roles. Nothing here knows files, templates or tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

ASSISTANT = "assistant"
THOUGHTS = "reasoning_content"
"""The key of a message that holds what was thought before the answer, as most chat templates read it."""
THOUGHT_NAMES = (THOUGHTS, "thinking", "reasoning")
"""What rows and templates call it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (``system``, ``user``, ``assistant``, ``tool``), the words, and what else the row said."""

    role: str
    content: str
    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys for the chat template, such as ``tool_calls``."""
    weight: float = 1.0
    """What the loss of an assistant turn is multiplied by."""
    given: bool = False
    """An assistant turn that belongs to the row's prompt and not to its completion."""

    def as_dict(self) -> dict[str, Any]:
        """The shape that chat templates read; thoughts under each name that templates of models know."""
        values = {"role": self.role, "content": self.content, **self.extra}
        if self.role == ASSISTANT and THOUGHTS in self.extra:
            values |= dict.fromkeys(THOUGHT_NAMES, self.extra[THOUGHTS])
        return values

    @property
    def is_empty(self) -> bool:
        """Whether the turn holds nothing that could be learnt."""
        return not (self.content.strip() or self.extra.get("tool_calls") or self.extra.get(THOUGHTS, "").strip())


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one row.

    A literal conversation is text that needs no template: the user message is the prompt and the assistant message the
    completion, both verbatim. ``controls`` says that special-token text inside it was meant as such (a row that brings
    its own template) and ``begins`` that the row spelled the begin token.
    """

    messages: tuple[Message, ...]
    literal: bool = False
    controls: bool = False
    begins: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    list_answer: bool = False
    """The answer was a list of several, of which the first was taken."""
    weight: float = 1.0
    """What the loss of the whole row is multiplied by."""
    switches: dict[str, Any] = field(default_factory=dict)
    """The row's own further names for the chat template."""
    passed_over: tuple[str, ...] = ()
    """What of the row is read and has no place in a conversation."""

    @property
    def answer(self) -> str | None:
        """The last assistant turn, or None when somebody else speaks last."""
        last = self.messages[-1]
        return last.content if last.role == ASSISTANT else None

    @property
    def answer_with_calls(self) -> str | None:
        """The last assistant turn as text with its tool calls, each as a line of JSON without ``<`` between lines of
        ``<tool_call>`` and ``</tool_call>``, whatever the template makes of them; None when somebody else speaks last.
        """
        if self.answer is None:
            return None
        functions = [call["function"] for call in self.messages[-1].extra.get("tool_calls", ())]
        calls = [{"name": function["name"], "arguments": function["arguments"]} for function in functions]
        spelled = [f"<tool_call>\n{_one_line(call)}\n</tool_call>" for call in calls]
        return "\n".join([*([self.answer] if self.answer or not spelled else []), *spelled])

    def without_answer(self) -> Conversation:
        """The same conversation up to the last assistant turn, as inference sees it."""
        if self.answer is None:
            return self
        return replace(self, messages=self.messages[:-1], list_answer=False)


def _one_line(call: dict[str, Any]) -> str:
    return json.dumps(call, ensure_ascii=False).replace("<", "\\u003c")
