"""Shapes of rows: one small function each, from a row to a conversation, and the detection of the shape.

Wrong types, missing keys and nulls are errors that name the row. How a conversation becomes text is ``templates.py``'s.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.conversation import ASSISTANT, Conversation, Message
from tunesmith.data.nli import nli_answer, nli_prompt
from tunesmith.data.row import Row, as_string, keys_of, rename_advice, string_of, value_of
from tunesmith.data.strict_json import json_type
from tunesmith.data.tokenized import COLUMNS as TOKEN_COLUMNS
from tunesmith.data.tokenized import TOKENIZED
from tunesmith.data.turn_order import TurnOrder, ordered
from tunesmith.data.turns import as_weight, from_json_text, read_system, read_tools, read_turns
from tunesmith.errors import DataError
from tunesmith.notices import notify

DEFAULT_MARKER = "[/INST]"
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """How rows are read: whether the answer has to be there, and what ``text`` rows need to know."""

    need_answer: bool = True
    bos_token: str | None = None
    eos_token: str | None = None
    completion_start: str | None = None
    whole_text: bool = False
    """Loss is on every token, so a ``text`` row needs no marker."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Further names of roles."""
    turn_order: TurnOrder = "error"
    """What happens to chats in an unusual order."""


Format = Callable[[Row, FormatOptions], Conversation]


def text(row: Row, options: FormatOptions) -> Conversation:
    """``text``: a row that brings its own template; the completion begins after the marker's last match. A text without
    one that is trained whole has no prompt in training; to generate, it is the prompt itself."""
    raw = string_of(row, "text")
    body, begins = strip_markers(raw, options.bos_token, options.eos_token)
    _note_foreign_markers(raw, options)
    if options.bos_token and body.startswith(options.bos_token):
        raise DataError(
            f"the text begins with the begin token {options.bos_token} twice", where=row.where, remedy="write it once"
        )
    marker = options.completion_start or DEFAULT_MARKER
    at = body.rfind(marker)
    if at < 0:
        if options.whole_text:  # all of it is learnt, or goes on where it is asked
            learnt = (Message("user", ""), Message(ASSISTANT, body))
            turns = learnt if options.need_answer else (Message("user", body),)
            return Conversation(turns, literal=True, controls=True, begins=begins)
        raise DataError(
            f"the text has no {marker!r}, so nothing says where the completion begins",
            where=row.where,
            remedy="set completion_start to the text before the completion, or loss_on: all",
        )
    prompt, completion = body[: at + len(marker)], body[at + len(marker) :]
    if options.eos_token and options.eos_token in completion and not options.whole_text:
        raise DataError(
            f"the end token {options.eos_token} stands inside the completion",
            where=row.where,
            remedy="the model would learn to stop there; keep it at the end of the text only",
        )
    both = (Message("user", prompt), Message(ASSISTANT, completion))
    return Conversation(both, literal=True, controls=True, begins=begins)


def strip_markers(raw: str, bos_token: str | None, eos_token: str | None) -> tuple[str, bool]:
    """``raw`` without one literal begin token at its start and one end token at its end, and whether it had the first.

    Both are added as ids later, exactly once, so a tokenizer that adds its own cannot double them.
    """
    begins = bool(bos_token) and raw.startswith(bos_token or "")
    body = raw[len(bos_token or "") :] if begins else raw
    ended = body.rstrip()
    if eos_token and ended.endswith(eos_token):
        body = ended[: -len(eos_token)]
    return body, begins


def _note_foreign_markers(raw: str, options: FormatOptions) -> None:
    for token, own, word in (("<s>", options.bos_token, "begin"), ("</s>", options.eos_token, "end")):
        there = raw.startswith(token) if word == "begin" else raw.rstrip().endswith(token)
        if there and own != token:
            notify(
                f"text rows {word} with {token}, which is not this tokenizer's {word} token ({own}); it is kept as text"
            )


def prompt_completion(row: Row, options: FormatOptions) -> Conversation:
    """``prompt`` and ``completion`` (or ``response``): the texts themselves, or lists of messages."""
    answer_key = "completion" if "completion" in row.values or "response" not in row.values else "response"
    if is_chat(row):
        answered = options.need_answer or answer_key in row.values
        given = [replace(turn, given=True) for turn in read_turns(row, "prompt", options.roles)]
        return _chat(row, [*given, *(read_turns(row, answer_key, options.roles) if answered else [])], options)
    prompt = string_of(row, "prompt", "completion")
    if options.need_answer and not prompt:
        text = f"{row.where}: the prompt is empty, as others may be; their completions are learnt without any context"
        notify(text, kind=f"empty prompts of {row.source}")
    return _pair(row, prompt, answer_key, options, literal=True)


def is_chat(row: Row) -> bool:
    """Whether the prompt is a list of messages, or JSON of one as tables hold it, and no text."""
    prompt = row.values.get("prompt")
    if isinstance(prompt, str):  # most are no list at the first glance
        return prompt.lstrip().startswith("[") and _MESSAGES_AS_TEXT.match(prompt) is not None
    return isinstance(prompt, list)


def nli(row: Row, options: FormatOptions) -> Conversation:
    """``premise``, ``hypothesis`` and, to train on, ``thought_process`` and ``predicted_label``."""
    query = nli_prompt(string_of(row, "premise", "hypothesis"), string_of(row, "hypothesis", "premise"))
    turns = [Message("user", query)]
    if options.need_answer or ("thought_process" in row.values and "predicted_label" in row.values):
        thought = string_of(row, "thought_process", "predicted_label")
        turns.append(Message(ASSISTANT, nli_answer(thought, _label(row, "predicted_label"))))
    return Conversation(tuple(turns))


def nli_reference(row: Row) -> str | None:
    """The gold answer of an NLI row: its ``true_label`` or ``label`` when it has one, else ``predicted_label``."""
    key = next((key for key in ("true_label", "label", "predicted_label") if row.values.get(key) is not None), None)
    if key is None:
        return None
    thought = row.values.get("thought_process")
    return nli_answer(thought if isinstance(thought, str) else "", _label(row, key))


def _label(row: Row, key: str) -> int:
    value = value_of(row, key)
    if value in ("0", "1"):
        return int(value)
    if isinstance(value, bool) or value not in (0, 1) or not isinstance(value, int):
        raise DataError(f"{key} is {value!r}, not 0 (no entailment) or 1 (entailment)", where=row.where)
    return value


def messages(row: Row, options: FormatOptions) -> Conversation:
    """``messages``: a list of ``{role, content}``, with ``tool_calls`` and a ``tools`` list where there are any."""
    return _chat(row, read_turns(row, "messages", options.roles), options)


def sharegpt(row: Row, options: FormatOptions) -> Conversation:
    """``conversations``: a list of ``{from, value}`` (or ``{role, content}``), with an optional ``system`` text."""
    return _chat(row, read_turns(row, "conversations", options.roles), options)


def alpaca(row: Row, options: FormatOptions) -> Conversation:
    """``instruction``, optional ``input``, ``output``: the input follows the instruction after a blank line.

    ``history`` holds earlier pairs of question and answer, which are turns of the chat.
    """
    query = string_of(row, "instruction", "output")
    given = row.values.get("input")
    if given not in (None, ""):
        query = f"{query}\n\n{string_of(row, 'input')}"
    pair = _pair(row, query, "output", options)
    return _chat(row, [*_history(row), *pair.messages], options)


def _history(row: Row) -> list[Message]:
    pairs = from_json_text(row, row.values.get("history") or [], "history")
    if not isinstance(pairs, list):
        raise DataError(f'"history" must be a list of pairs, this is {json_type(pairs)}', where=row.where)
    turns = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history[{index}] must be a question and its answer", where=row.where)
        question, answer = (as_string(text, row, f"history[{index}]") for text in pair)
        turns += [Message("user", question), Message(ASSISTANT, answer)]
    return turns


def question_answer(row: Row, options: FormatOptions) -> Conversation:
    """``question`` and ``answer``; a number, true or false is an answer, too."""
    return _chat(row, _pair(row, string_of(row, "question", "answer"), "answer", options).messages, options)


def rag(row: Row, options: FormatOptions) -> Conversation:
    """``prompt`` and ``completion`` of a processed retrieval row; a list of answers gives its first."""
    return _pair(row, string_of(row, "prompt", "completion"), "completion", options, lists=True)


def tokenized(row: Row, options: FormatOptions) -> Conversation:
    """``input_ids`` with ``labels`` or masks: no conversation; ``tokenized.py`` reads them.

    Raises:
        DataError: always.
    """
    raise DataError(
        "the row holds token ids, and here its text is needed",
        where=row.where,
        remedy="give rows of text, such as messages, or prompt and completion",
    )


FORMATS: dict[str, Format] = {
    "text": text,
    "prompt_completion": prompt_completion,
    "nli": nli,
    "messages": messages,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "question_answer": question_answer,
    "rag": rag,
    TOKENIZED: tokenized,
}

CHAT_COLUMNS = frozenset({"system", "tools", "functions", "chat_template_kwargs"})
"""Columns that every chat may have beside its turns."""
KNOWN_COLUMNS = CHAT_COLUMNS | {"history"}
"""Columns that mean something in some format: elsewhere they would be left out, and that is an error."""

COLUMNS: dict[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "prompt_completion": frozenset({"prompt", "completion", "response"}),
    "nli": frozenset({"premise", "hypothesis", "thought_process", "predicted_label", "true_label", "label"}),
    "messages": frozenset({"messages"}) | CHAT_COLUMNS,
    "alpaca": frozenset({"instruction", "input", "output", "history"}) | CHAT_COLUMNS,
    "sharegpt": frozenset({"conversations"}) | CHAT_COLUMNS,
    "question_answer": frozenset({"question", "answer"}) | CHAT_COLUMNS,
    "rag": frozenset({"prompt", "completion", "query", "answers", "passages", "context_spans"}),
    TOKENIZED: TOKEN_COLUMNS,
}
"""Columns that each format reads, besides ``weight``; a retrieval row may have others that hold its documents."""

_READ = {name: columns | {"weight"} for name, columns in COLUMNS.items()}
_READ_OF_CHATS = _READ["prompt_completion"] | CHAT_COLUMNS


def _as_pattern(text: str, **columns: str) -> str:
    """``text`` as a format string in which each given marker became a column."""
    text = text.replace("{", "{{").replace("}", "}}")
    for column, marker in columns.items():
        text = text.replace(marker, f"{{{column}}}")
    return text


QUERIES: dict[str, str] = {
    "text": "{text}",
    "prompt_completion": "{prompt}",
    "nli": _as_pattern(nli_prompt("<premise>", "<hypothesis>"), premise="<premise>", hypothesis="<hypothesis>"),
    "alpaca": "{instruction}\n\n{input}",
    "question_answer": "{question}",
    "rag": "{prompt}",
}
"""The question that each format asks, as a format string over its columns, for the formats that bring no messages; an
alpaca row without ``input`` is its instruction alone."""

QUESTION_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt",),
    "nli": ("premise", "hypothesis"),
    "messages": ("messages",),
    "alpaca": ("instruction",),
    "sharegpt": ("conversations",),
    "question_answer": ("question",),
    "rag": ("prompt",),
    TOKENIZED: ("input_ids",),
}
"""Columns that a row of each format needs to ask its question, without an answer."""

SIGNS: tuple[tuple[str, frozenset[str]], ...] = (
    (TOKENIZED, frozenset({"input_ids"})),
    ("messages", frozenset({"messages"})),
    ("sharegpt", frozenset({"conversations"})),
    ("rag", frozenset({"prompt", "query", "positive_passages"})),
    ("rag", frozenset({"prompt", "query", "answers"})),
    ("prompt_completion", frozenset({"prompt", "completion"})),
    ("prompt_completion", frozenset({"prompt", "response"})),
    ("nli", frozenset({"premise", "hypothesis"})),
    ("alpaca", frozenset({"instruction", "output"})),
    ("question_answer", frozenset({"question", "answer"})),
    ("text", frozenset({"text"})),
    ("prompt_completion", frozenset({"prompt"})),
    ("alpaca", frozenset({"instruction"})),
    ("question_answer", frozenset({"question"})),
)


def detect(row: Row) -> str:
    """The format whose columns this row has.

    Raises:
        DataError: no known format; names the keys found and the setting that renames columns.
    """
    for name, keys in SIGNS:
        if keys <= row.values.keys():
            return "rag" if name == "prompt_completion" and _answers_are_listed(row) else name
    known = "; ".join(dict.fromkeys(" + ".join(sorted(keys)) for _, keys in SIGNS))
    raise DataError(
        f"the columns {keys_of(row)} are no known format",
        where=row.where,
        remedy=f"expected one of: {known}; {rename_advice('prompt')}",
    )


def rename(row: Row, columns: dict[str, str]) -> Row:
    """The row with ``columns`` applied: {name that the format expects: name in the file}."""
    if not columns:
        return row
    values = dict(row.values)
    for expected, given in columns.items():
        if given in row.values:
            values[expected] = row.values[given]
    return Row(values, row.source, row.line)


def columns_read(row: Row, format_name: str) -> frozenset[str]:
    """The columns that the format reads of such a row, ``weight`` included."""
    chat = format_name == "prompt_completion" and is_chat(row)
    return _READ_OF_CHATS if chat else _READ[format_name]


def expected_columns(format_name: str) -> frozenset[str] | None:
    """The names that ``columns`` may give to columns of such rows; None: any, for retrieval rows hold documents too."""
    if format_name == "rag":
        return None
    chat = CHAT_COLUMNS if format_name == "prompt_completion" else frozenset()
    return COLUMNS[format_name] | chat | {"weight"}


def _answers_are_listed(row: Row) -> bool:
    answer = row.values.get("completion", row.values.get("response"))
    return isinstance(answer, list) and not any(isinstance(item, dict) for item in answer)


def _pair(
    row: Row, query: str, answer_key: str, options: FormatOptions, *, literal: bool = False, lists: bool = False
) -> Conversation:
    """One question and, where it is needed or there, one answer."""
    turns = [Message("user", query)]
    several = False
    if options.need_answer or row.values.get(answer_key) is not None:
        answer = value_of(row, answer_key)
        if lists and isinstance(answer, list):
            if not answer:
                raise DataError(
                    f"{answer_key} is an empty list", where=row.where, remedy="give an answer or drop the row"
                )
            answer, several = answer[0], len(answer) > 1
        turns.append(
            Message(ASSISTANT, as_string(answer if literal or lists else _number_as_text(answer), row, answer_key))
        )
    return Conversation(tuple(turns), literal=literal, list_answer=several)


def _number_as_text(answer: Any) -> Any:
    """An answer that is a number, true or false (a class, a grade, a sum) as JSON writes it; others as they are."""
    known = isinstance(answer, (bool, int)) or (isinstance(answer, float) and math.isfinite(answer))
    return json.dumps(answer) if known else answer


def row_weight(row: Row) -> float:
    """What the row's ``weight`` multiplies its loss by; 1 without one.

    Raises:
        DataError: it is no number of at least 0.
    """
    value = row.values.get("weight")
    if value is None:
        return 1.0
    notify("rows carry a weight: the loss of their tokens is multiplied by it; row_weights: false leaves it alone")
    return as_weight(row, value, "weight")


def _chat(row: Row, turns: Sequence[Message], options: FormatOptions) -> Conversation:
    """A chat whose turns follow one another properly, with the system message, tools and switches of other columns."""
    system = read_system(row)
    if system and turns[0].role == "system":
        if turns[0].content != system[0].content:
            raise DataError(
                'the column "system" and the first message are two system messages',
                where=row.where,
                remedy="keep one of them",
            )
        system = []
    turns = ordered(row, [*system, *turns], options.turn_order)
    if options.need_answer and not any(turn.role == ASSISTANT for turn in turns):
        raise DataError(
            "no assistant turn, so nothing to learn", where=row.where, remedy="add the answer, or remove the row"
        )
    passed_over: tuple[str, ...] = ()
    while options.need_answer and turns[-1].role != ASSISTANT:
        turns = turns[:-1]  # words after the last answer teach nothing
        passed_over = ("turns after the last answer",)
    return Conversation(tuple(turns), tools=read_tools(row), switches=_switches(row), passed_over=passed_over)


def _switches(row: Row) -> dict[str, Any]:
    switches = from_json_text(row, row.values.get("chat_template_kwargs") or {}, "chat_template_kwargs")
    if not isinstance(switches, dict):
        raise DataError(f'"chat_template_kwargs" must be an object, this is {json_type(switches)}', where=row.where)
    return switches
