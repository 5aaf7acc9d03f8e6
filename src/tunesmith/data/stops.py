"""The ids at which generation stops: how a template ends an answer, and how it ends a call of a tool.

They are read off a row's own chat with a word in place of its answer: what a template asks for besides questions and
answers (tools, a system message, switches), that row brings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from tunesmith.data.chat_template import ChatRenderer
from tunesmith.data.conversation import ASSISTANT, THOUGHTS, Conversation, Message
from tunesmith.data.encoding import Encoder
from tunesmith.data.masking import encode
from tunesmith.data.rendered import Rendered
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
    by_turn = lambda conversation: render(conversation, where)  # noqa: E731
    thoughts = {THOUGHTS: "t"} if _thinks(render, asked) else {}
    found = _ends(asked, Message(ASSISTANT, "b", thoughts), by_turn, encoder)
    name = _first_function(asked)
    if name is not None:
        call = {"type": "function", "id": "call00001", "function": {"name": name, "arguments": {}}}
        with suppress(DataError, ModelError):  # it writes no calls, or none without arguments
            found += _ends(asked, Message(ASSISTANT, "", thoughts | {"tool_calls": [call]}), by_turn, encoder)
    end = encoder.eos_token_id
    return [*dict.fromkeys(number for number in found if number != end), end]


def _ends(
    asked: Conversation, answer: Message, render: Callable[[Conversation], Rendered], encoder: Encoder
) -> list[int]:
    """How the template ends an answer; nothing where the end token follows the text."""
    earlier = [replace(turn, weight=0.0) for turn in asked.messages]  # nothing depends on what is trained of them
    rendered = render(replace(asked, messages=(*earlier, answer)))
    (ids, _counts) = encode([rendered], encoder)[0]
    return [] if rendered.ends else ids[-1:]


def _thinks(render: Renderer, asked: Conversation) -> bool:
    renderer = render.of(asked) if isinstance(render, LiteralRenderer) else render
    return isinstance(renderer, ChatRenderer) and renderer.thinks


def _first_function(asked: Conversation) -> str | None:
    for tool in asked.tools:
        function = tool.get("function", tool)
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return str(function["name"])
    return None
