"""The ids at which generation stops: how a template ends an answer, and how it ends a call of a tool.

They are read off a row's own chat with a word in place of its answer: what a template asks for besides questions and
answers (tools, a system message, switches), that row brings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tunesmith.data.chat_template import ChatRenderer
from tunesmith.data.conversation import ASSISTANT, THOUGHTS, Conversation, Message
from tunesmith.data.encoding import Encoder
from tunesmith.data.masking import encode
from tunesmith.data.templates import LiteralRenderer, Renderer
from tunesmith.errors import DataError, ModelError


def stops_of(asked: Conversation, render: Renderer, encoder: Encoder, where: str) -> list[int]:
    """Ids at which the answer to a chat stops: first how the template ends a turn, then the end token.

    Args:
        asked: the chat up to its answer.
        render: what renders it.
        encoder: of the tokenizer.
        where: the row's address.

    Raises:
        DataError: the template refuses the chat.
    """
    thoughts = {THOUGHTS: "t"} if _thinks(render, asked) else {}
    earlier = [replace(turn, weight=0.0) for turn in asked.messages]  # nothing depends on what is trained of them

    def answered(content: str, *calls: dict[str, Any]) -> tuple[list[int], list[int]]:
        answer = Message(ASSISTANT, content, thoughts | ({"tool_calls": list(calls)} if calls else {}))
        rendered = render(replace(asked, messages=(*earlier, answer)), where)
        (ids, _counts) = encode([rendered], encoder)[0]
        return ids, [] if rendered.ends else ids[-1:]

    _, found = answered("b")
    name = _first_function(asked)
    if name is not None:
        found += _ends_of_calls(name, answered)
    end = encoder.eos_token_id
    return [*dict.fromkeys(number for number in found if number != end), end]


def _ends_of_calls(function: str, answered: Callable[..., tuple[list[int], list[int]]]) -> list[int]:
    """How the template ends an answer that calls; a mark that closes each call does not, since another may follow."""
    one, two = (
        {"type": "function", "id": f"call0000{number}", "function": {"name": function, "arguments": {}}}
        for number in (1, 2)
    )
    found: list[int] = []
    with suppress(DataError, ModelError):  # it writes no calls, none without arguments, or one in a turn
        ids, found = answered("", one)
        both, _ = answered("", one, two)
        found = [number for number in found if both.count(number) == ids.count(number)]
    return found


def _thinks(render: Renderer, asked: Conversation) -> bool:
    renderer = render.of(asked) if isinstance(render, LiteralRenderer) else render
    return isinstance(renderer, ChatRenderer) and renderer.thinks


def _first_function(asked: Conversation) -> str | None:
    for tool in asked.tools:
        function = tool.get("function", tool)
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return str(function["name"])
    return None
