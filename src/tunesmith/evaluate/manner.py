"""How a model wants to be talked to: as a chat that is kept, or question by question, column by column."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.data.formats import QUESTION_COLUMNS
from tunesmith.data.row import Row
from tunesmith.evaluate.answering import Answerer


@dataclass(frozen=True, slots=True)
class Manner:
    """What a question is made of.

    Attributes:
        format_name: format of the rows that questions become.
        columns: what is asked for; a chat has one, the next message.
        keeps: whether earlier turns belong to the next prompt.
    """

    format_name: str
    columns: tuple[str, ...]
    keeps: bool


def manner_of(answerer: Answerer) -> Manner:
    """The kind of conversation that a model was trained for; without a contract, what its tokenizer knows."""
    contract, data = answerer.contract, answerer.data
    knows_chats = bool(answerer.tokenizer.chat_template) or data.template is not None
    format_name: str
    if data.format != "auto":
        format_name = data.format
    elif contract is not None and contract.prompt.kind != "ids":
        format_name = contract.format
    else:
        format_name = "messages" if knows_chats else "prompt_completion"
    if format_name == "text" and _texts_are_chats(answerer):
        return Manner("messages", ("you",), keeps=False)
    columns = QUESTION_COLUMNS[format_name]
    kind = contract.prompt.kind if contract is not None else "ids"
    is_chat = kind == "chat" or (kind == "ids" and columns == ("messages",))
    keeps = is_chat and len(columns) == 1
    return Manner("messages" if keeps else format_name, ("you",) if keeps else columns, keeps)


def _texts_are_chats(answerer: Answerer) -> bool:
    """Whether the texts of training were written in the tokenizer's chat template: what stands before an answer there
    is what the template writes there, so a question can be asked without its markers."""
    contract = answerer.contract
    cut_after = getattr(contract.prompt, "cut_after", None) if contract is not None else None
    marker = answerer.data.completion_start or cut_after
    if not marker or not answerer.tokenizer.chat_template:
        return False
    row = Row({"messages": [{"role": "user", "content": "a"}]}, "chat", 1)
    return answerer.builder(row, "messages").prompt_rendered(row).text.rstrip().endswith(marker.rstrip())
