"""The meaning of generated text: a label, a final number, a JSON value, an answer span, and how each was read.

This is the only module that reads meaning out of generated text. Its functions see the generated part alone, never
the prompt; they guess nothing (no default label) and score nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.prepare_rag import QUOTE
from tunesmith.evaluate.call_spellings import STRICT_JSON, MalformedCallError, spelled_calls
from tunesmith.evaluate.canonical import canonical_expression, canonical_number

UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an output says.

    Attributes:
        value: the label, number or text; None when nothing could be read.
        how: the name of the rule that read it, or ``unreadable``.
        cited: numbers of the passages that the output refers to, where the task looks for them.
    """

    value: Any
    how: str
    cited: tuple[int, ...] = ()

    @property
    def readable(self) -> bool:
        return self.how != UNREADABLE


NOTHING = Answer(None, UNREADABLE)


# --- labels -----------------------------------------------------------------------------------------------------------


class _ContradictionError(Exception):
    """One JSON object gives the same key twice, with different values."""


def read_label(text: str, labels: Sequence[int] = (0, 1), key: str = "predicted_label") -> Answer:
    """The label that an output declares.

    Rules, the first that applies decides:

    - ``json``: the whole output is one JSON object with the label as an integer under ``key``;
    - ``json_in_text``: the first such object inside other text, or one with raw line breaks in its strings;
    - ``json_string``, ``json_float``, ``json_boolean``: such an object, alone or in text, with ``"1"``, ``1.0`` or
      ``true``;
    - ``label_key``: broken or cut JSON in which the quoted key and its value can still be read;
    - ``bare_label``: the whole output is the label;
    - ``label_phrase``: output without any ``{`` that says ``label: 1`` or ``the answer is 1`` at the end of a line.

    A value that is not one of ``labels``, or a rule that finds two different labels, makes the output unreadable. Words
    such as "entailment" are never read as a label: they stand in every thought.
    """
    stripped = text.strip()
    try:
        whole = _whole_object(key, stripped)
        if whole is not None:
            return _label_of(whole[key], labels, "json") if key in whole else NOTHING
        found = _first_object_with(key, stripped)
    except _ContradictionError:
        return NOTHING
    if found is not None:
        return _label_of(found[key], labels, "json_in_text")
    for how, pattern in _label_rules(key):
        values = {match.group("label") for match in pattern.finditer(stripped)}
        if how == "label_phrase" and "{" in stripped:
            continue
        if values:
            value = values.pop()
            return Answer(int(value), how) if not values and _declared(value, labels) else NOTHING
    return NOTHING


def _label_of(value: Any, labels: Sequence[int], how: str) -> Answer:
    if isinstance(value, bool):
        number, how = int(value), "json_boolean"
    elif isinstance(value, int):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number, how = int(value), "json_float"
    elif isinstance(value, str) and _declared(value.strip(), labels):
        number, how = int(value.strip()), "json_string"
    else:
        return NOTHING
    return Answer(number, how) if number in labels else NOTHING


def _declared(text: str, labels: Sequence[int]) -> bool:
    return text in {str(label) for label in labels}


def _decoder(key: str, *, strict: bool) -> json.JSONDecoder:
    def consistent(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({repr(value) for name, value in pairs if name == key}) > 1:
            raise _ContradictionError
        return dict(pairs)

    return json.JSONDecoder(object_pairs_hook=consistent, strict=strict)


def _whole_object(key: str, text: str) -> dict[str, Any] | None:
    try:
        value = _decoder(key, strict=True).decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _first_object_with(key: str, text: str) -> dict[str, Any] | None:
    # Models write raw line breaks inside strings; strict=False reads them.
    return next((value for value in _objects(text, _decoder(key, strict=False)) if key in value), None)


def _objects(text: str, decoder: json.JSONDecoder) -> Iterator[dict[str, Any]]:
    """The complete JSON objects in ``text``, from left to right; an object's own strings are not searched again."""
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            end = start + 1
        except RecursionError:
            return  # nested deeper than any answer; trying each depth would take for ever
        else:
            if isinstance(value, dict):
                yield value
        start = text.find("{", end)


def _label_rules(key: str) -> list[tuple[str, re.Pattern[str]]]:
    number = r"[\"']?(?P<label>[+-]?\d+(?:\.\d+)?)[\"']?"
    words = rf"(?:label|answer|{re.escape(key)})"
    # A quote with a backslash before it belongs to the text of a thought, so it does not open the key.
    quoted_key = rf"(?<!\\)([\"']){re.escape(key)}\1"
    return [
        ("label_key", re.compile(rf"{quoted_key}\s*:\s*{number}\s*(?=[,}}\]]|$)")),
        ("bare_label", re.compile(rf"^{number}\.?$")),
        ("label_phrase", re.compile(rf"\b{words}\b[\"'*]*\s*(?:is|:|=)\s*\**{number}[\s.*]*$", re.I | re.M)),
    ]


# --- labels in words --------------------------------------------------------------------------------------------------

_MAX_LABEL_LENGTH = 60
_DECORATION = " \t\r\n.:;,!*_`\"'()[]<>"
_FILLER = r"(?:[\s:=\-\u2013\u2014*_`\"'(\[<>]|\b(?:is|option|choice)\b){0,12}"
_AFTER_LABEL = r"(?=[ \t]*(?:$|[\n.,;:!?)\]}>\"'*_`<]|\b(?:because|since|as|is)\b))(?![.,]\d)"


def read_class(text: str, labels: Sequence[str], key: str = "label") -> Answer:
    """Which of ``labels`` an output declares.

    Labels of one character are compared as they are, longer ones without regard to case. Rules, the first that applies
    decides:

    - ``json``: the whole output is one JSON object with a label under ``key``;
    - ``json_in_text``: the first such object inside other text;
    - ``bare_label``: the whole output is a label, up to punctuation, brackets and quotes around it;
    - ``answer_phrase``: the last label that follows "answer", "ans", "label", "correct option" or "correct choice"
      (``the answer is (B).``, ``ANSWER: B``, ``<ANSWER>: yes``);
    - ``option_phrase``: the label after "option" or "choice", where only one label stands there in the whole output;
    - ``lone_line``: the label that is all of the first or of the last line.

    Two labels side by side ("B or C") declare nothing, and neither does a label in running text. An output that begins
    with ``{`` is read as JSON alone; an object without a known label under ``key``, or with two, makes it unreadable.
    """
    known = {_label_key(label): label for label in labels}
    stripped = text.strip()
    try:
        found = _first_object_with(key, stripped)
        whole = _whole_object(key, stripped)
    except _ContradictionError:
        return NOTHING
    if found is not None:
        label = known.get(_label_key(_text_of(found[key])))
        return NOTHING if label is None else Answer(label, "json_in_text" if whole is None else "json")
    if stripped.startswith("{"):
        return NOTHING
    bare = known.get(_label_key(stripped))
    if bare is not None:
        return Answer(bare, "bare_label")
    for how, pattern in _class_rules(labels):
        said = [known[_label_key(match.group("label"))] for match in pattern.finditer(stripped)]
        if said and (how == "answer_phrase" or len(set(said)) == 1):
            return Answer(said[-1], how)
    lines = [line for line in stripped.splitlines() if line.strip()]
    alone = {known[_label_key(line)] for line in lines[:1] + lines[-1:] if _label_key(line) in known}
    return Answer(alone.pop(), "lone_line") if len(alone) == 1 else NOTHING


def declared_label(text: str, key: str = "label") -> str | None:
    """The label that a reference answer consists of, when nobody has said which labels there are.

    It is the value under ``key`` of a JSON object, or the whole text when that is one short line.
    """
    try:
        whole = _whole_object(key, text.strip())
    except _ContradictionError:
        return None
    said = _text_of(whole.get(key)) if whole is not None else text.strip()
    if not said.strip(_DECORATION) or "\n" in said or len(said) > _MAX_LABEL_LENGTH:
        return None
    return said if len(said) == 1 else said.strip(_DECORATION)


def same_label(label: str, other: str) -> bool:
    """Whether two labels are one: up to decoration and, from two characters on, up to case."""
    return _label_key(label) == _label_key(other)


def _label_key(text: str) -> str:
    bare = " ".join(text.strip(_DECORATION).split())
    return bare if len(bare) == 1 else bare.casefold()


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int) else ""


def _class_rules(labels: Sequence[str]) -> list[tuple[str, re.Pattern[str]]]:
    ordered = sorted((" ".join(label.strip(_DECORATION).split()) for label in labels), key=len, reverse=True)
    spelled = [re.escape(label).replace(r"\ ", r"\s+") for label in ordered]
    one_of = "|".join(
        f"(?-i:{word})" if len(label) == 1 else word for label, word in zip(ordered, spelled, strict=True)
    )
    alone = rf"(?![ \t]*(?:[,/&]|\bor\b|\band\b)[ \t]*[(\[]?(?:{one_of})(?!\w))"
    label = rf"{_FILLER}(?<!\w)(?P<label>{one_of})(?!\w){_AFTER_LABEL}{alone}"
    return [
        ("answer_phrase", re.compile(rf"\b(?:answer|ans|label|correct\s+(?:option|choice))\b{label}", re.I)),
        ("option_phrase", re.compile(rf"\b(?:option|choice)\b{label}", re.I)),
    ]


# --- JSON -------------------------------------------------------------------------------------------------------------

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


def read_json(text: str) -> Answer:
    """The JSON value of an output.

    Rules, the first that applies decides: ``json`` (the whole output), ``json_fenced`` (the only block between
    triple backticks), ``json_in_text`` (the first complete object in other text). NaN, infinities and an object that
    names a key twice are no JSON here.
    """
    blocks = _FENCED.findall(text)
    for how, candidate in [("json", text), *[("json_fenced", block) for block in blocks if len(blocks) == 1]]:
        try:
            return Answer(STRICT_JSON.decode(candidate.strip()), how)
        except (ValueError, RecursionError):
            continue
    return next((Answer(value, "json_in_text") for value in _objects(text, STRICT_JSON)), NOTHING)


# --- tool calls -------------------------------------------------------------------------------------------------------


def read_calls(text: str) -> Answer:
    """The tool calls of an output, as a list of ``{"name": ..., "arguments": {...}}``.

    The text has to hold its control tokens, for many models mark calls with them; thoughts before ``</think>`` call
    nothing. Rules, by the spelling whose mark is in the text:

    - ``json``: names and arguments as JSON, between marks such as ``<tool_call>``, ``[TOOL_CALLS]`` or
      ``<|python_tag|>``, after a name that a mark announces, or as the whole output;
    - ``text_parameters``: each argument a bare text between marks of its own, so that its type is not known;
    - ``python``: ``[name(key=value)]``; ``braces``: ``call:name{key:value}``;
    - ``no_call``: words without the mark of any spelling; the list is empty.

    A call that was begun and cannot be read makes the output unreadable, and so do several of which one is broken.
    """
    try:
        found = spelled_calls(text)
    except MalformedCallError:
        return NOTHING
    if found is None:
        return Answer([], "no_call") if text.strip() else NOTHING
    return Answer(*found) if found[0] else NOTHING


# --- numbers ----------------------------------------------------------------------------------------------------------

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = rf"[-+\u2212]?(?:\$\s?)?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,2}}(?!\w))?"
_FRACTION = rf"{_NUMBER}\s?/\s?{_DIGITS}(?:\.\d+)?"
_LATEX_FRACTION = r"[-+\u2212]?\s?\\[dt]?frac\{[^{}]*\}\{[^{}]*\}"
_QUANTITY = re.compile(rf"(?<![\w.])(?:{_LATEX_FRACTION}|{_FRACTION}|{_NUMBER})")
_HASH_MARKS = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_PHRASE = re.compile(r"\b(?:final\s+)?answer\b\**\s*(?:is|:|=)[*:]*[ \t]*", re.IGNORECASE)


def read_number(text: str) -> Answer:
    """The final answer of a worked solution, as a canonical text: equal numbers have equal texts.

    Rules, the first that applies decides: ``hash_marks`` (after the first ``####`` line, GSM8K's convention),
    ``boxed`` (the last ``\\boxed{}``, MATH's convention), ``answer_phrase`` (after the last "the answer is"),
    ``last_number``. After a mark something that is no number is taken as normalised text (an expression, a choice).
    """
    phrases = [text[match.end() :].split("\n", 1)[0] for match in _ANSWER_PHRASE.finditer(text)]
    marked = [
        ("hash_marks", _HASH_MARKS.findall(text)[:1]),
        ("boxed", _boxed(text)[-1:]),
        ("answer_phrase", phrases[-1:]),
    ]
    for how, contents in marked:
        for content in contents:
            value = _marked_value(content, how)
            if value:
                return Answer(value, how)
    for match in reversed(list(_QUANTITY.finditer(text))):
        number = canonical_number(match.group())
        if number is not None:
            return Answer(number, "last_number")
    return NOTHING


def _marked_value(content: str, how: str) -> str:
    """What stands after a mark: its number where it has one, else the text itself without its decoration."""
    plain = re.sub(r"^[\s*:]+|[\s*]+$", "", content)
    number = canonical_number(plain)
    if number is not None:
        return number
    # Inside a box "2x + 1" is an expression and stays whole; after hash marks the number comes first, as in
    # "18 dollars"; a sentence may say "the answer is about 18 dollars".
    quantity = {"hash_marks": _QUANTITY.match, "answer_phrase": _QUANTITY.search}.get(how, lambda _: None)(plain)
    if quantity:
        return canonical_number(quantity.group()) or ""
    if how == "answer_phrase":
        plain = re.split(r"[.;](?:\s|$)", plain, maxsplit=1)[0]
    expression = canonical_expression(plain)
    return canonical_number(expression) or expression


def _boxed(text: str) -> list[str]:
    """The contents of every complete ``\\boxed{...}``, braces inside them counted."""
    contents = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                contents.append(text[match.end() : position].strip())
                break
    return contents


# --- answers in words -------------------------------------------------------------------------------------------------

_ANSWER_TAG = re.compile(r"<\s*answer\s*>\s*:?", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"<\s*/\s*answer\s*>", re.IGNORECASE)
_FINAL_ANSWER = re.compile(
    r"(?:\b(?:the\s+)?(?:final\s+)?answer\s+is\b\s*:?|(?:^|\n)\s*(?:final\s+)?answer\s*:)", re.IGNORECASE
)


def read_span(text: str) -> Answer:
    """The answer in words.

    Rules, the first that applies decides: ``answer_tag`` (after the last ``<ANSWER>:`` of a chain of thought),
    ``answer_phrase`` (after the last "the answer is" or a line that begins with "Answer:"), ``text`` (the whole
    output). An output without words is unreadable.
    """
    for how, pattern in (("answer_tag", _ANSWER_TAG), ("answer_phrase", _FINAL_ANSWER)):
        ends = [match.end() for match in pattern.finditer(text)]
        if ends:
            part = _CLOSING_TAG.split(text[ends[-1] :], maxsplit=1)[0].strip()
            return Answer(part, how) if part else NOTHING
    return read_text(text)


def read_text(text: str) -> Answer:
    """The whole output, without the white space around it; an empty one is unreadable."""
    stripped = text.strip()
    return Answer(stripped, "text") if stripped else NOTHING


# --- citations --------------------------------------------------------------------------------------------------------

_PASSAGE = r"(?:document|doc|passage|source)s?"
_NUMBERS = r"\d{1,3}(?:\s*(?:,|;|&|and)\s*\d{1,3})*"
_BRACKETED = rf"\[\s*(?:{_PASSAGE}\s*)?#?\s*(?P<bracketed>{_NUMBERS})\s*\]"
_MARK = re.compile(rf"{_BRACKETED}|\b{_PASSAGE}\s*[:#]?\s*(?P<named>{_NUMBERS})(?!\w|[.,]\d)", re.IGNORECASE)
_BRACKETED_MARKS = re.compile(rf"(?:\s*{_BRACKETED})+", re.IGNORECASE)
_QUOTED = re.compile(rf"{re.escape(QUOTE[0])}.*?(?:{re.escape(QUOTE[1])}|$)", re.DOTALL)


def read_cited_span(text: str) -> Answer:
    """``read_span``, with the passages that the whole output cites and without marks in the answer itself.

    Marks are ``[2]``, ``[1][3]``, ``[1, 3]``, ``[Document 2]``, ``Document [2]``, ``Passage 2``, ``Source: 2`` and the
    like, of numbers with up to three digits. What stands between the marks of a quotation is the passage's own text
    and cites nothing.
    """
    numbers = {
        int(number)
        for match in _MARK.finditer(_QUOTED.sub(" ", text))
        for number in re.findall(r"\d+", match.group("bracketed") or match.group("named"))
    }
    answer = read_span(without_citations(text))
    return Answer(answer.value, answer.how, tuple(sorted(numbers)))


def without_citations(text: str) -> str:
    """``text`` without marks in brackets, as ALCE compares answers; ``Passage 2`` in running text stays."""
    return _BRACKETED_MARKS.sub("", text).strip()
