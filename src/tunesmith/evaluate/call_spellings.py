"""How models spell tool calls: what stands between the marks of a template, to names and arguments.

It is the grammar behind ``answers.read_calls`` and knows no row. A spelling is chosen by its mark; once a mark is
there, whatever cannot be read as that spelling is malformed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Call = dict[str, Any]
"""``name`` and ``arguments``."""
TEXTS = "text_parameters"
"""The spelling that writes every argument as bare text, so that its type is not known."""


class MalformedCallError(ValueError):
    """A call was begun and cannot be read."""


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: a key stands twice.
    """
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def no_constant(name: str) -> Any:
    """Refuse NaN and infinities.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is no JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=distinct_keys, parse_constant=no_constant)


def spelled_calls(text: str) -> tuple[list[Call], str] | None:
    """The calls in an output and the kind of spelling; None where no spelling's mark is in it.

    Raises:
        MalformedCallError: a call was begun and cannot be read.
    """
    said = text.rpartition("</think>")[2]
    for mark, read, how in _SPELLINGS:
        if mark.search(said):
            try:
                return list(read(said)), how
            except (ValueError, RecursionError) as error:
                raise MalformedCallError(str(error)) from error
    return None


# marks around JSON ----------------------------------------------------------------------------------------------------


def _between(opening: str, closing: str) -> Callable[[str], Iterator[Call]]:
    """Calls as JSON between marks; the last one may lack its closing mark, at which generation may stop."""
    pattern = re.compile(rf"{opening}(.*?)(?:{closing}|\Z)", re.DOTALL)

    def read(text: str) -> Iterator[Call]:
        for block in pattern.findall(text):
            yield from _json_calls(_without_controls(block))

    return read


def _json_calls(text: str) -> Iterator[Call]:
    """One object or a list of them, also several after one another with a semicolon between them."""
    at = 0
    while True:
        value, at = STRICT_JSON.raw_decode(text, at)
        for item in value if isinstance(value, list) and value else [value]:
            yield _as_call(item)
        rest = text[at:].lstrip()
        if not rest:
            return
        at = len(text) - len(rest.removeprefix(";").lstrip())


def _as_call(value: Any) -> Call:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise MalformedCallError("is no call")
    name = function.get("name", function.get("tool_name"))
    arguments: Any = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = STRICT_JSON.decode(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise MalformedCallError("has no name or no arguments")
    return {"name": name, "arguments": arguments}


def _without_controls(text: str) -> str:
    """The text without control tokens around it, such as the end of a turn."""
    return re.sub(r"\A\s*(?:<\|[^|<>]*\|>\s*)*|\s*(?:(?:<\|[^|<>]*\|>|</s>|<eos>)\s*)*\Z", "", text)


def _bare(text: str) -> Iterator[Call]:
    return _json_calls(_without_controls(text))


def _named_before(pattern: str) -> Callable[[str], Iterator[Call]]:
    """Calls whose name stands before their arguments; groups of ``pattern``: name, arguments as JSON."""
    found = re.compile(pattern, re.DOTALL)
    begun = re.compile(pattern.partition("(")[0])

    def read(text: str) -> Iterator[Call]:
        matches = found.findall(text)
        if len(matches) != len(begun.findall(text)):
            raise MalformedCallError("a call without arguments or without end")
        for name, arguments in matches:
            yield _as_call({"name": name.strip(), "arguments": STRICT_JSON.decode(_without_controls(arguments))})

    return read


def _mistral(text: str) -> Iterator[Call]:
    """A list of JSON after the mark, or a mark for each call: name, id where there is one, and arguments."""
    for block in text.split("[TOOL_CALLS]")[1:]:
        name, marked, arguments = block.partition("[ARGS]")
        if marked:
            name = name.partition("[CALL_ID]")[0].strip()
            yield _as_call({"name": name, "arguments": STRICT_JSON.decode(_without_controls(arguments))})
        else:
            yield from _json_calls(_without_controls(block))


# marks around texts ---------------------------------------------------------------------------------------------------


def _parameters(call: str, parameter: str, line: str = "") -> Callable[[str], Iterator[Call]]:
    """Calls as marks within marks.

    Args:
        call: groups are a name and a body; begins with the mark of a call.
        parameter: groups are a name and a text.
        line: what stands on both sides of a text besides its marks.
    """
    found, inner = re.compile(call, re.DOTALL), re.compile(parameter, re.DOTALL)
    begun = re.compile(call.partition("(?P")[0])

    def read(text: str) -> Iterator[Call]:
        matches = list(found.finditer(text))
        if len(matches) != len(begun.findall(text)):
            raise MalformedCallError("a call without end")
        for match in matches:
            pairs = [(name, said.removeprefix(line).removesuffix(line)) for name, said in inner.findall(match["body"])]
            if inner.sub("", match["body"]).strip():
                raise MalformedCallError("more than parameters in a call")
            yield {"name": match["name"].strip(), "arguments": distinct_keys(pairs)}

    return read


# values in a notation of their own ------------------------------------------------------------------------------------

_NAME = re.compile(r"[\w.\-/]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_QUOTES = ('<|"|>', "<escape>")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


class _Reader:
    """Reads values as Python and as Gemma's templates write them: bare keys, quotes of either kind, marks as quotes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, sign: str) -> bool:
        """Go behind ``sign`` where it comes next, white space aside."""
        self.at += len(self.text[self.at :]) - len(self.text[self.at :].lstrip())
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) if found else 0
        return found

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise MalformedCallError(f"{sign} is missing")

    def name(self) -> str:
        self.take("")
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise MalformedCallError("a name is missing")
        self.at = match.end()
        return match.group()

    def pairs(self, assign: str, closing: str) -> dict[str, Any]:
        """Keys and values up to ``closing``."""
        found: list[tuple[str, Any]] = []
        while not self.take(closing):
            if found:
                self.need(",")
            key = self.string()
            key = self.name() if key is None else key
            self.need(assign)
            found.append((key, self.value()))
        return distinct_keys(found)

    def value(self) -> Any:
        said = self.string()
        if said is not None:
            return said
        if self.take("{"):
            return self.pairs(":", "}")
        if self.take("["):
            found: list[Any] = []
            while not self.take("]"):
                if found:
                    self.need(",")
                found.append(self.value())
            return found
        number = _NUMBER.match(self.text, self.at)
        if number is not None:
            self.at = number.end()
            return json.loads(number.group())
        word = self.name()
        if word not in _WORDS:
            raise MalformedCallError(f"{word} is no value")
        return _WORDS[word]

    def string(self) -> str | None:
        """The quoted text that comes next, or None."""
        for quote in _QUOTES:
            if self.take(quote):
                said, closed, _ = self.text[self.at :].partition(quote)
                if not closed:
                    raise MalformedCallError("a text without end")
                self.at += len(said) + len(quote)
                return said
        quote = next((sign for sign in "'\"" if self.take(sign)), "")
        if not quote:
            return None
        match = re.compile(rf"((?:\\.|[^\\{quote}])*){quote}", re.DOTALL).match(self.text, self.at)
        if match is None:
            raise MalformedCallError("a text without end")
        self.at = match.end()
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), match[1], flags=re.DOTALL)


def _braces(text: str) -> Iterator[Call]:
    """``call:name{key:value}`` after its mark."""
    for block in _BRACES.split(text)[1:]:
        reader = _Reader(block)
        name = reader.name()
        reader.need("{")
        yield {"name": name, "arguments": reader.pairs(":", "}")}


def _python(text: str) -> Iterator[Call]:
    """``[name(key=value), ...]``, as Python calls functions."""
    blocks = re.findall(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|\Z)", text, re.DOTALL)
    for block in blocks or [_without_controls(text)]:
        if re.match(r"\s*\[?\s*\{", block):
            yield from _json_calls(block)
            continue
        reader, number = _Reader(block), 0
        reader.need("[")
        while not reader.take("]"):
            if number:
                reader.need(",")
            name = reader.name()
            reader.need("(")
            yield {"name": name, "arguments": reader.pairs("=", ")")}
            number += 1
        if reader.text[reader.at :].strip():
            raise MalformedCallError("more than calls")


_BRACES = re.compile(r"(?:<\|tool_call>|<start_function_call>)\s*call:")
_TAG = r"(?:[\w.-]+:)?"
_SPELLINGS: tuple[tuple[re.Pattern[str], Callable[[str], Iterator[Call]], str], ...] = tuple(
    (re.compile(mark), read, how)
    for mark, read, how in (
        (
            rf"<{_TAG}invoke name=",
            _parameters(
                rf'<{_TAG}invoke name="(?P<name>[^"]+)">(?P<body>.*?)</{_TAG}invoke>',
                rf'<{_TAG}parameter name="([^"]+)">(.*?)</{_TAG}parameter>',
            ),
            TEXTS,
        ),
        (
            "<function=",
            _parameters(
                r"<function=(?P<name>[^>\n]+)>(?P<body>.*?)</function>",
                r"<parameter=([^>\n]+)>(.*?)</parameter>",
                "\n",
            ),
            TEXTS,
        ),
        (
            r"<tool_call>\s*[^\s{\[<]",
            _parameters(
                r"<tool_call>(?P<name>\s*[\w.\-/]+)\s*(?P<body>.*?)</tool_call>",
                r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>",
            ),
            TEXTS,
        ),
        ("<tool_call>", _between("<tool_call>", "</tool_call>"), "json"),
        (_BRACES.pattern, _braces, "braces"),
        (
            r"to=functions\.",
            _named_before(r"to=functions\.([\w.-]+)[^{]*<\|message\|>(.*?)(?=<\|call\|>|<\|start\|>|\Z)"),
            "json",
        ),
        (r"<\|tool_call_start\|>", _python, "python"),
        (r"\[TOOL_CALLS\]", _mistral, "json"),
        (
            "<｜tool▁call▁begin｜>",
            _named_before(
                "<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([^\\n{<]+?)(?:<｜tool▁sep｜>|\\n```json\\n)"
                "(.*?)(?:\\n```)?(?=<｜tool▁call▁end｜>|\\Z)"
            ),
            "json",
        ),
        (r"<\|START_ACTION\|>", _between(r"<\|START_ACTION\|>", r"<\|END_ACTION\|>"), "json"),
        (r"<\|tool_call\|>", _between(r"<\|tool_call\|>", r"<\|/tool_call\|>"), "json"),
        (r"<\|python_tag\|>", _between(r"<\|python_tag\|>", r"\Z"), "json"),
        (r"\A\s*(?:<\|[^|<>]*\|>\s*)*\[\s*[A-Za-z_][\w.\-/]*\(", _python, "python"),
        (r"\A\s*(?:<\|[^|<>]*\|>\s*)*(?:\{|\[\s*\{)", _bare, "json"),
    )
)
