"""A chat that is too long made shorter from its beginning: whole turns first, then words, never a header.

It chooses what to leave out; how long a chat is in tokens is told by whoever renders it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from tunesmith.data.conversation import ASSISTANT, Conversation, Message
from tunesmith.data.masking import TooLongError

TURNS, WORDS = "turns", "truncate_prompt"
"""What was left out, as the ledger calls it: whole turns, or (also) the first words of the one that then came first."""


def shorten(
    conversation: Conversation, length_of: Callable[[Conversation], int], max_length: int, where: str
) -> tuple[Conversation, str]:
    """The chat without its oldest turns, and what was left out.

    The system message stays, and so do the last answer that may be trained and the question before it. Where that is
    still too long, the question loses its first words.

    Args:
        conversation: a chat with an answer.
        length_of: number of tokens of a conversation.
        max_length: longest in tokens.
        where: the row's address.

    Raises:
        TooLongError: what may not be left out is too long by itself.
    """
    system = conversation.messages[:1] if conversation.messages[0].role == "system" else ()
    turns = conversation.messages[len(system) :]
    starts = _starts(turns)

    def without(number: int) -> Conversation:
        return replace(conversation, messages=(*system, *turns[starts[number] :]))

    fits = bisect_left(range(len(starts)), True, key=lambda number: length_of(without(number)) <= max_length)
    if fits < len(starts):
        return without(fits), TURNS
    shortest = without(len(starts) - 1)
    return _without_words(shortest, len(system), length_of, max_length, where), WORDS


def _starts(turns: tuple[Message, ...]) -> list[int]:
    """Where a chat may begin: at each question up to the one before the last answer with loss."""
    answers = [index for index, turn in enumerate(turns) if turn.role == ASSISTANT and turn.weight > 0]
    last = answers[-1] if answers else len(turns) - 1
    return [0, *(index for index, turn in enumerate(turns[:last]) if turn.role == "user" and index > 0)]


def _without_words(
    chat: Conversation, index: int, length_of: Callable[[Conversation], int], max_length: int, where: str
) -> Conversation:
    """The chat whose turn ``index`` keeps as many of its last characters as fit, from the start of a word on."""
    turn = chat.messages[index]

    def cut(number: int) -> Conversation:
        messages = (*chat.messages[:index], replace(turn, content=turn.content[number:]), *chat.messages[index + 1 :])
        return replace(chat, messages=messages)

    words = len(turn.content) if turn.role != ASSISTANT else 0
    least = length_of(cut(words))
    if least > max_length:
        raise TooLongError(
            f"{least} tokens remain when every earlier turn is left out, max_length is {max_length}",
            where=where,
            remedy=f"set max_length: {least} or more, or too_long: drop",
            needed=least,
        )
    number = bisect_left(range(words), True, key=lambda number: length_of(cut(number)) <= max_length)
    space = turn.content.find(" ", number, number + 40)
    later = space + 1 if number and space >= 0 and not turn.content[number - 1].isspace() else number
    return cut(later if length_of(cut(later)) <= max_length else number)
