"""Who speaks after whom: what happens to chats in an order for which few templates are made.

How messages are read is ``turns.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from tunesmith.data.conversation import ASSISTANT, THOUGHTS, Message
from tunesmith.data.row import Row
from tunesmith.errors import DataError

TurnOrder = Literal["error", "merge", "keep"]


def ordered(row: Row, turns: Sequence[Message], order: TurnOrder) -> list[Message]:
    """The turns in an order that templates know, or as they are where ``order`` is ``keep``.

    ``merge`` joins neighbours of one role with a blank line between them, and a later system message to the first one.

    Raises:
        DataError: the order is unusual and ``error`` is asked for, or it cannot be mended.
    """
    if order == "keep":
        return list(turns)
    made: list[Message] = []
    for index, turn in enumerate(turns):
        if turn.role == "system" and index > 0:
            _refuse(row, order, f"turn {index} is a system message in the middle")
            if made[0].role == "system":
                made[0] = _joined(row, made[0], turn)
            else:
                made.insert(0, turn)
        elif made and turn.role == made[-1].role and turn.role in ("user", ASSISTANT):
            _refuse(row, order, f"turns {index - 1} and {index} are both from {turn.role}")
            made[-1] = _joined(row, made[-1], turn)
        else:
            made.append(turn)
    first = next((turn for turn in made if turn.role != "system"), None)
    if first is not None and first.role == ASSISTANT and not first.given:
        raise DataError(
            "the chat begins with the assistant",
            where=row.where,
            remedy="put a question before it, or set turn_order: keep (the template may still refuse it)",
        )
    return made


def _refuse(row: Row, order: TurnOrder, what: str) -> None:
    if order == "error":
        raise DataError(what, where=row.where, remedy="set turn_order to merge or keep, or change the row")


def _joined(row: Row, first: Message, second: Message) -> Message:
    if first.role == ASSISTANT and (first.weight, first.given) != (second.weight, second.given):
        raise DataError(
            "two turns that would be merged are not trained alike",
            where=row.where,
            remedy="give both the same weight, or set turn_order: keep",
        )
    extra: dict[str, Any] = {**first.extra, **second.extra}
    for name in first.extra.keys() & second.extra.keys():
        if name == "tool_calls":
            extra[name] = [*first.extra[name], *second.extra[name]]
        elif name == THOUGHTS:
            extra[name] = _with_blank_line(first.extra[name], second.extra[name])
        elif first.extra[name] != second.extra[name]:
            raise DataError(f"two turns that would be merged differ in {name}", where=row.where,
                            remedy="set turn_order: keep, or change the row")  # fmt: skip
    return replace(first, content=_with_blank_line(first.content, second.content), extra=extra)


def _with_blank_line(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text.strip())
