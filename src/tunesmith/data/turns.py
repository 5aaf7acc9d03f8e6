"""The messages of a chat as rows spell them, to ``Message``: roles, contents, tool calls, thoughts and marks.

Spellings are those of OpenAI, ShareGPT and Anthropic; what comes out is the one shape that chat templates read. The
order of turns is ``turn_order.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.conversation import ASSISTANT, THOUGHT_NAMES, THOUGHTS, Message
from tunesmith.data.row import Row, as_string, value_of
from tunesmith.data.strict_json import check_numbers, json_type, parse_json
from tunesmith.errors import DataError

CALL = "call"
"""A turn whose whole content is a tool call."""
ROLES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "model": ASSISTANT,
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": CALL,
    "tool_call": CALL,
}
"""What each name of a role means."""
MARKS = ("train", "trainable", "training", "loss", "loss_mask")
"""Keys of a message that say whether it is trained: false and 0, true and 1."""
PART_KEYS = {
    **dict.fromkeys(("text", "input_text", "output_text"), ("text",)),
    **dict.fromkeys(("thinking", "reasoning"), ("thinking", "reasoning", "text")),
    "tool_use": ("name", "input", "id"),
    "tool_result": ("content", "tool_use_id"),
}
"""Types of content parts that are read, and the keys that are read of each; others become keys of the message."""
PART_ORDER = ("thinking", "reasoning", "tool_result", "text", "tool_use")
"""In which order templates write what stands in parts: another one would be trained as this one."""
ARGUMENTS = ("arguments", "args", "parameters", "input")
"""What rows call the arguments of a call."""


@dataclass(slots=True)
class _Parts:
    """What a message's content holds, whichever way it is written."""

    text: str = ""
    thoughts: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)
    """Keys of parts that nothing here reads, by the name that the message gives them."""


def read_turns(row: Row, key: str, roles: Mapping[str, str]) -> list[Message]:
    """The messages in a column: a list, or JSON of one as tables hold it.

    Args:
        row: the row.
        key: the column.
        roles: further names of roles, with those they stand for.

    Raises:
        DataError: something in it is no message.
    """
    turns = from_json_text(row, value_of(row, key), key)
    if not isinstance(turns, list) or not turns:
        found = "an empty array" if turns == [] else json_type(turns)
        raise DataError(f'"{key}" must be a list of messages, this is {found}', where=row.where)
    return [made for index, turn in enumerate(turns) for made in _turn(row, turn, f"{key}[{index}]", roles)]


def read_tools(row: Row) -> tuple[dict[str, Any], ...]:
    """The tools that a row's chat may call, as JSON schemas of functions.

    Raises:
        DataError: they are no list of objects.
    """
    key = "functions" if row.values.get("functions") and not row.values.get("tools") else "tools"
    tools = from_json_text(row, row.values.get(key) or [], key)
    if not isinstance(tools, list):
        raise DataError(f'"{key}" must be an array, this is {json_type(tools)}', where=row.where)
    made = []
    for index, given in enumerate(tools):
        tool = from_json_text(row, given, f"{key}[{index}]")
        if not isinstance(tool, dict):
            raise DataError(f"{key}[{index}] must be an object, this is {json_type(tool)}", where=row.where)
        tool = _with_schemas(row, tool, f"{key}[{index}]")
        if "input_schema" in tool:
            tool = {name: value for name, value in tool.items() if name not in ("input_schema", "type")} | {
                "parameters": tool["input_schema"]
            }
            tool = {"type": "function", "function": tool}
        made.append({"type": "function", "function": tool} if key == "functions" else tool)
    _check_numbers(row, made, key)
    return tuple(made)


def _with_schemas(row: Row, tool: dict[str, Any], path: str) -> dict[str, Any]:
    """A tool whose function and schema are objects, where a table holds them as JSON."""
    texts = ("function", "parameters", "input_schema")
    read = {key: from_json_text(row, value, f"{path}.{key}") if key in texts else value for key, value in tool.items()}
    if isinstance(read.get("function"), dict):
        read["function"] = _with_schemas(row, read["function"], f"{path}.function")
    return read


def read_system(row: Row) -> list[Message]:
    """The message of a ``system`` column, or none."""
    given = row.values.get("system")
    if given in (None, "", []):
        return []
    text = _parts(row, given, "system", "system").text
    return [Message("system", text)] if text.strip() else []


def from_json_text(row: Row, value: Any, path: str) -> Any:
    """A list or an object; where it is a text, as tables hold it, that is read as strictly as a file of JSON.

    Raises:
        DataError: the text begins as a list or an object and is no JSON.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_json(value)
    except DataError as problem:
        raise DataError(f"{path}: {problem.what}", where=row.where, remedy=problem.remedy) from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is a text that is not JSON: {value[:40]!r}", where=row.where) from None


def _check_numbers(row: Row, value: Any, path: str) -> None:
    try:
        check_numbers(value)
    except DataError as problem:
        raise DataError(f"{path} {problem.what}", where=row.where, remedy=problem.remedy) from None


def _turn(row: Row, turn: Any, path: str, roles: Mapping[str, str]) -> list[Message]:
    if not isinstance(turn, dict):
        raise DataError(f"{path} must be an object, this is {json_type(turn)}", where=row.where)
    role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    if role_key == "from" and (turn.get("role") is not None or turn.get("content") is not None):
        raise DataError(
            f"{path} has from and {'role' if turn.get('role') is not None else 'content'}",
            where=row.where,
            remedy="spell a message by role and content, or by from and value",
        )
    said = turn.get(role_key)
    role = roles.get(said, ROLES.get(said)) if isinstance(said, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise DataError(
            f"{path}.{role_key} is {said!r}",
            where=row.where,
            remedy=f"roles are {known}; name others with roles, {{name in the rows: name of these}}",
        )
    content = turn.get(content_key)
    if len(turn) == 2 and role != CALL and isinstance(content, str):  # most turns, without a detour
        return [Message(role, content)]
    extra = {name: value for name, value in turn.items() if name not in (role_key, content_key) and value is not None}
    if role == CALL:
        calls = from_json_text(row, content, f"{path}.{content_key}")
        extra["tool_calls"] = calls if isinstance(calls, list) else [calls]
        role, content = ASSISTANT, ""
    weight = _weight_of(row, extra, path, role)
    calls = _calls_of(row, extra, path)
    if content is None and calls:
        content = ""
    if content is None:
        problem = "is null" if content_key in turn else "is missing"
        raise DataError(f"{path}.{content_key} {problem}", where=row.where)
    parts = _parts(row, content, f"{path}.{content_key}", role)
    if calls + parts.calls:
        extra["tool_calls"] = [_call(row, call, f"{path}.tool_calls") for call in calls + parts.calls]
    if role == ASSISTANT:
        _gather_thoughts(row, extra, parts.thoughts, path)
    extra |= parts.others
    _check_numbers(row, extra, path)
    if parts.results and not (parts.text.strip() or parts.others):
        return parts.results
    return [*parts.results, Message(role, parts.text, extra, weight)]


def _parts(row: Row, content: Any, path: str, role: str) -> _Parts:
    """Content that is a text or a list of parts; pictures and sounds cannot be trained here."""
    if not isinstance(content, list):
        return _Parts(as_string(content, row, path))
    made = _Parts()
    kinds = [_read_part(row, part, f"{path}[{index}]", role, made) for index, part in enumerate(content)]
    kinds = [kind for kind in kinds if kind]
    written = sorted(kinds, key=PART_ORDER.index)
    if kinds != written:
        raise DataError(
            f"{path} has parts in the order {', '.join(kinds)}, and templates write {', '.join(written)}",
            where=row.where,
            remedy="split it into several messages, or put the parts in that order",
        )
    return made


def _read_part(row: Row, given: Any, place: str, role: str, made: _Parts) -> str:
    """Add one part to ``made``; returns its type, or nothing where it says nothing."""
    part = given if isinstance(given, dict) else {"text": given}
    kind: str = part.get("type", "text")
    if (
        not isinstance(kind, str)
        or kind not in PART_KEYS
        or (kind in ("thinking", "reasoning", "tool_use") and role != ASSISTANT)
    ):
        remedy = "only text is trained; remove such rows"
        raise DataError(f"{place} is of type {kind!r}", where=row.where, remedy=remedy)
    others = _other_keys(part, kind)
    if kind == "tool_result":
        told = _parts(row, "" if part.get("content") is None else part["content"], f"{place}.content", "tool")
        extra = _with_id(told.others | others, "tool_call_id", part.get("tool_use_id"))
        made.results.append(Message("tool", told.text, extra))
        return kind
    made.others |= others
    if kind in ("thinking", "reasoning"):
        words = next((part[name] for name in (kind, "text") if part.get(name) is not None), None)
        made.thoughts.append(as_string(words, row, place))
        return kind
    if kind == "tool_use":
        function = {"name": part.get("name"), "arguments": part.get("input")}
        made.calls.append(_with_id({"type": "function", "function": function}, "id", part.get("id")))
        return kind
    text = as_string(part.get("text"), row, place)
    made.text += text
    return "text" if text.strip() else ""


def _other_keys(part: dict[str, Any], kind: str) -> dict[str, Any]:
    """What a content part says besides what is read of it, by the names that its message gives that."""
    if len(part) == 2 and "text" in part:  # most parts
        return {}
    left = {name: value for name, value in part.items() if name not in ("type", *PART_KEYS[kind])}
    if left.get("is_error") is False:  # that nothing went wrong is said by not saying it
        del left["is_error"]
    return {f"{name} of content": value for name, value in left.items() if value not in (None, "", [], {})}


def _with_id(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return values if value is None else {name: value} | values


def _calls_of(row: Row, extra: dict[str, Any], path: str) -> list[Any]:
    """The tool calls that stand in keys of their own; they are taken out of ``extra``."""
    calls = from_json_text(row, extra.pop("tool_calls", None) or [], f"{path}.tool_calls")
    if not isinstance(calls, list):
        raise DataError(f"{path}.tool_calls must be a list of objects", where=row.where)
    if extra.get("function_call"):
        if calls:
            raise DataError(f"{path} has tool_calls and function_call", where=row.where, remedy="keep one of them")
        given = from_json_text(row, extra.pop("function_call"), f"{path}.function_call")
        calls = [{"type": "function", "function": given}]
    return calls


def _call(row: Row, given: Any, path: str) -> dict[str, Any]:
    """A tool call with its arguments as an object: chat templates write them as JSON, and a text would be quoted."""
    call = from_json_text(row, given, path)
    if not isinstance(call, dict):
        raise DataError(f"{path} must be a list of objects", where=row.where)
    beside = {key: value for key, value in call.items() if key != "function"}
    function = call.get("function")
    if "function" not in call:  # name and arguments stand in the call itself
        beside = {"type": "function"} | ({"id": call["id"]} if "id" in call else {})
        function = {key: value for key, value in call.items() if key not in ("id", "type")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{path} has a call without the name of a function", where=row.where)
    names = [name for name in ARGUMENTS if function.get(name) is not None]
    if len(names) > 1:
        raise DataError(f"{path} has a call with {' and '.join(names)}", where=row.where, remedy="keep one of them")
    arguments = from_json_text(row, function[names[0]], f"{path}: {names[0]}") if names else {}
    if not isinstance(arguments, dict):
        raise DataError(f"{path}: {names[0]} must be an object, this is {json_type(arguments)}", where=row.where)
    others = {key: value for key, value in function.items() if key not in ARGUMENTS}
    return {**beside, "function": {**others, "arguments": arguments}}


def _gather_thoughts(row: Row, extra: dict[str, Any], parts: list[str], path: str) -> None:
    """One key for what was thought before an answer, whichever of its names the row uses."""
    found = [as_string(extra.pop(name), row, f"{path}.{name}") for name in THOUGHT_NAMES if name in extra]
    found += ["\n\n".join(parts)] if parts else []
    if len({text.strip() for text in found if text.strip()}) > 1:
        names = ", ".join(THOUGHT_NAMES)
        raise DataError(f"{path} has different thoughts under {names}", where=row.where, remedy="keep one of them")
    if found:
        extra[THOUGHTS] = max(found, key=lambda text: bool(text.strip()))


def _weight_of(row: Row, extra: dict[str, Any], path: str, role: str) -> float:
    """What the turn's loss is multiplied by; its marks are taken out of ``extra``."""
    said = extra.pop("weight", None)
    weight = 1.0 if said is None else as_weight(row, said, f"{path}.weight")
    marks = {name: extra.pop(name) for name in MARKS if name in extra}
    for name, value in marks.items():
        if isinstance(value, str) or value not in (0, 1):
            remedy = "a mark is true or false, 1 or 0; how much an answer counts is its weight"
            raise DataError(f"{path}.{name} is {value!r}", where=row.where, remedy=remedy)
    trained = {bool(value) for value in marks.values()} | ({weight > 0} if said is not None else set())
    if len(trained) > 1:
        names = ", ".join([*marks, *(["weight"] if said is not None else [])])
        raise DataError(f"{path}: {names} contradict one another", where=row.where, remedy="keep one of them")
    if role != ASSISTANT and True in trained:
        name = "weight" if said is not None else next(iter(marks))
        raise DataError(f"{path} has a {name} and is from {role}", where=row.where, remedy="only answers have one")
    return 0.0 if False in trained else weight


def as_weight(row: Row, value: Any, path: str) -> float:
    """A number of at least 0.

    Raises:
        DataError: ``value`` is none.
    """
    try:
        weight = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not 0 <= weight < float("inf"):
        more = "; row_weights: false leaves this column alone" if path == "weight" else ""
        raise DataError(f"{path} is {value!r}", where=row.where, remedy=f"a weight is a number of at least 0{more}")
    return weight
