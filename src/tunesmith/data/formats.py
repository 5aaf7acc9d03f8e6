"""Shapes of rows: one small function each, from a row to a conversation, and the detection of the shape.

Wrong types, missing keys and nulls are errors that name the row. How a conversation becomes text is ``templates.py``'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.conversation import ASSISTANT, Conversation, Message
from tunesmith.data.nli import nli_answer, nli_prompt
from tunesmith.data.row import Row
from tunesmith.data.strict_json import json_type
from tunesmith.errors import DataError
from tunesmith.notices import notify

DEFAULT_MARKER = "[/INST]"
SAME_ROLE = {"developer": "system"}
ROLES = ("system", "user", ASSISTANT, "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "model": ASSISTANT,
    "assistant": ASSISTANT,
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """How rows are read: whether the answer has to be there, and what ``text`` rows need to know."""

    need_answer: bool = True
    bos_token: str | None = None
    eos_token: str | None = None
    completion_start: str | None = None
    whole_text: bool = False
    """Loss is on every token, so a ``text`` row needs no marker."""


Format = Callable[[Row, FormatOptions], Conversation]


def text(row: Row, options: FormatOptions) -> Conversation:
    """``text``: a row that brings its own template; the completion begins after the marker's last match."""
    raw = _string(row, "text")
    body, begins = strip_markers(raw, options.bos_token, options.eos_token)
    _note_foreign_markers(raw, options)
    if options.bos_token and body.startswith(options.bos_token):
        raise DataError(
            f"the text begins with the begin token {options.bos_token} twice", where=row.where, remedy="write it once"
        )
    marker = options.completion_start or DEFAULT_MARKER
    at = body.rfind(marker)
    if at < 0:
        if options.whole_text and options.need_answer:
            return Conversation(
                (Message("user", ""), Message(ASSISTANT, body)), literal=True, controls=True, begins=begins
            )
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
    turns = (Message("user", prompt), Message(ASSISTANT, completion))
    return Conversation(turns, literal=True, controls=True, begins=begins)


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
    if isinstance(row.values.get("prompt"), list):
        answered = options.need_answer or answer_key in row.values
        given = [replace(turn, given=True) for turn in _turns(row, "prompt")]
        return _chat(row, [*given, *(_turns(row, answer_key) if answered else [])], options)
    prompt = _string(row, "prompt", "completion")
    if options.need_answer and not prompt:
        notify("some prompts are empty; their completions are learnt without any context")
    return _pair(row, prompt, answer_key, options, literal=True)


def nli(row: Row, options: FormatOptions) -> Conversation:
    """``premise``, ``hypothesis`` and, to train on, ``thought_process`` and ``predicted_label``."""
    query = nli_prompt(_string(row, "premise", "hypothesis"), _string(row, "hypothesis", "premise"))
    turns = [Message("user", query)]
    if options.need_answer or ("thought_process" in row.values and "predicted_label" in row.values):
        thought = _string(row, "thought_process", "predicted_label")
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
    value = _value(row, key)
    if value in ("0", "1"):
        return int(value)
    if isinstance(value, bool) or value not in (0, 1) or not isinstance(value, int):
        raise DataError(f"{key} is {value!r}, not 0 (no entailment) or 1 (entailment)", where=row.where)
    return value


def messages(row: Row, options: FormatOptions) -> Conversation:
    """``messages``: a list of ``{role, content}``, with ``tool_calls`` and a ``tools`` list where there are any."""
    return _chat(row, _turns(row, "messages"), options)


def sharegpt(row: Row, options: FormatOptions) -> Conversation:
    """``conversations``: a list of ``{from, value}`` (or ``{role, content}``), with an optional ``system`` text."""
    turns = _turns(row, "conversations")
    if isinstance(row.values.get("system"), str) and row.values["system"]:
        turns = [Message("system", row.values["system"]), *turns]
    return _chat(row, turns, options)


def alpaca(row: Row, options: FormatOptions) -> Conversation:
    """``instruction``, optional ``input``, ``output``: the input follows the instruction after a blank line."""
    query = _string(row, "instruction", "output")
    given = row.values.get("input")
    if given not in (None, ""):
        query = f"{query}\n\n{_string(row, 'input')}"
    return _pair(row, query, "output", options)


def question_answer(row: Row, options: FormatOptions) -> Conversation:
    """``question`` and ``answer``."""
    return _pair(row, _string(row, "question", "answer"), "answer", options)


def rag(row: Row, options: FormatOptions) -> Conversation:
    """``prompt`` and ``completion`` of a processed retrieval row; a list of answers gives its first."""
    return _pair(row, _string(row, "prompt", "completion"), "completion", options, lists=True)


FORMATS: dict[str, Format] = {
    "text": text,
    "prompt_completion": prompt_completion,
    "nli": nli,
    "messages": messages,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "question_answer": question_answer,
    "rag": rag,
}

COLUMNS: dict[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "prompt_completion": frozenset({"prompt", "completion", "response", "tools"}),
    "nli": frozenset({"premise", "hypothesis", "thought_process", "predicted_label", "true_label", "label"}),
    "messages": frozenset({"messages", "tools"}),
    "alpaca": frozenset({"instruction", "input", "output"}),
    "sharegpt": frozenset({"conversations", "system", "tools"}),
    "question_answer": frozenset({"question", "answer"}),
    "rag": frozenset({"prompt", "completion", "query", "answers", "passages", "context_spans"}),
}
"""Columns that each format reads, besides ``weight``; a retrieval row may have others that hold its documents."""


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
}
"""Columns that a row of each format needs to ask its question, without an answer."""

_SIGNS: tuple[tuple[str, frozenset[str]], ...] = (
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
    for name, keys in _SIGNS:
        if keys <= row.values.keys():
            return "rag" if name == "prompt_completion" and _answers_are_listed(row) else name
    known = "; ".join(dict.fromkeys(" + ".join(sorted(keys)) for _, keys in _SIGNS))
    raise DataError(
        f"the columns {_keys(row)} are no known format",
        where=row.where,
        remedy=f"expected one of: {known}; rename yours with columns, {{expected name: name in the file}}",
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
        answer = _value(row, answer_key)
        if lists and isinstance(answer, list):
            if not answer:
                raise DataError(
                    f"{answer_key} is an empty list", where=row.where, remedy="give an answer or drop the row"
                )
            answer, several = answer[0], len(answer) > 1
        turns.append(Message(ASSISTANT, _as_string(answer, row, answer_key)))
    return Conversation(tuple(turns), literal=literal, list_answer=several)


def _value(row: Row, key: str, *others: str) -> Any:
    """A value that has to be there and not null."""
    if key not in row.values:
        expected = " and ".join(f'"{name}"' for name in (key, *others))
        raise DataError(
            f'no "{key}"; the row has {_keys(row)}',
            where=row.where,
            remedy=f"expected {expected}; rename other columns with columns, {{{key}: name in the file}}",
        )
    value = row.values[key]
    if value is None:
        raise DataError(f'"{key}" is null', where=row.where, remedy="write a text or remove the row")
    return value


def _string(row: Row, key: str, *others: str) -> str:
    return _as_string(_value(row, key, *others), row, key)


def _as_string(value: Any, row: Row, path: str) -> str:
    if not isinstance(value, str):
        raise DataError(f'"{path}" must be a string, this is {json_type(value)}', where=row.where)
    return value


def _keys(row: Row) -> str:
    return "[" + ", ".join(f'"{key}"' for key in row.values) + "]"


def _turns(row: Row, key: str) -> list[Message]:
    turns = _value(row, key)
    if not isinstance(turns, list) or not turns:
        found = "an empty array" if turns == [] else json_type(turns)
        raise DataError(f'"{key}" must be a list of messages, this is {found}', where=row.where)
    return [_turn(row, turn, f"{key}[{index}]") for index, turn in enumerate(turns)]


def _turn(row: Row, turn: Any, path: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{path} must be an object, this is {json_type(turn)}", where=row.where)
    role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    said = turn.get(role_key)
    role = SHAREGPT_ROLES.get(said) if role_key == "from" and isinstance(said, str) else said
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        known = ", ".join(SHAREGPT_ROLES if role_key == "from" else ROLES)
        raise DataError(f"{path}.{role_key} is {said!r}", where=row.where, remedy=f"roles are {known}")
    own = (role_key, content_key, "weight")
    extra = {name: value for name, value in turn.items() if name not in own and value is not None}
    if extra.get("tool_calls"):
        extra["tool_calls"] = _tool_calls(row, extra["tool_calls"], path)
    content = turn.get(content_key)
    if content is None and extra.get("tool_calls"):
        content = ""
    if content is None:
        problem = "is null" if content_key in turn else "is missing"
        raise DataError(f"{path}.{content_key} {problem}", where=row.where)
    if isinstance(content, list):
        content = _text_of_parts(row, content, f"{path}.{content_key}")
    weight = 1.0
    if turn.get("weight") is not None:
        weight = _weight(row, turn["weight"], f"{path}.weight")
        if role != ASSISTANT:
            raise DataError(f"{path} has a weight and is from {role}", where=row.where, remedy="only answers have one")
    return Message(str(role), _as_string(content, row, f"{path}.{content_key}"), extra, weight)


def _text_of_parts(row: Row, parts: list[Any], path: str) -> str:
    """Content given as a list of ``{type: text, text: ...}``, joined; pictures and sounds cannot be trained here."""
    texts = []
    for index, part in enumerate(parts):
        if isinstance(part, dict) and part.get("type", "text") != "text":
            raise DataError(f"{path}[{index}] is of type {part['type']!r}", where=row.where, remedy="only text is read")
        texts.append(_as_string(part.get("text") if isinstance(part, dict) else part, row, f"{path}[{index}]"))
    return "".join(texts)


def _tool_calls(row: Row, calls: Any, path: str) -> list[Any]:
    """Tool calls with their arguments as objects: chat templates write them as JSON, and a string would be quoted."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"{path}.tool_calls must be a list of objects", where=row.where)
    made = []
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments)
            except ValueError:
                raise DataError(
                    f"{path}.tool_calls has arguments that are not JSON: {arguments[:40]!r}", where=row.where
                ) from None
            function = {**function, "arguments": parsed}
            call = {**call, "function": function} if "function" in call else function
        made.append(call)
    return made


def row_weight(row: Row) -> float:
    """What the row's ``weight`` multiplies its loss by; 1 without one.

    Raises:
        DataError: it is no number of at least 0.
    """
    value = row.values.get("weight")
    if value is None:
        return 1.0
    notify("rows carry a weight: the loss of their tokens is multiplied by it; row_weights: false leaves it alone")
    return _weight(row, value, "weight", "; row_weights: false leaves this column alone")


def _weight(row: Row, value: Any, path: str, more: str = "") -> float:
    try:
        weight = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not 0 <= weight < float("inf"):
        raise DataError(f"{path} is {value!r}", where=row.where, remedy=f"a weight is a number of at least 0{more}")
    return weight


def _chat(row: Row, turns: Sequence[Message], options: FormatOptions) -> Conversation:
    """A chat whose turns follow one another properly."""
    previous: str | None = None
    for index, turn in enumerate(turns):
        if turn.role == "system" and index > 0:
            raise DataError(f"turn {index} is a system message in the middle", where=row.where)
        if turn.role == previous and turn.role in ("user", ASSISTANT):
            raise DataError(f"turns {index - 1} and {index} are both from {turn.role}", where=row.where)
        previous = turn.role
    if options.need_answer and not any(turn.role == ASSISTANT for turn in turns):
        raise DataError(
            "no assistant turn, so nothing to learn", where=row.where, remedy="add the answer, or remove the row"
        )
    while options.need_answer and turns[-1].role != ASSISTANT:
        turns = turns[:-1]  # words after the last answer teach nothing
    tools = row.values.get("tools") or []
    if not isinstance(tools, list):
        raise DataError(f'"tools" must be an array, this is {json_type(tools)}', where=row.where)
    return Conversation(tuple(turns), tools=tuple(tools))
