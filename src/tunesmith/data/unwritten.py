"""What a row holds and its rendered text does not: found once for each kind of row, so that nothing vanishes unsaid.

A conversation of the same shape, in which every text became a word that occurs nowhere else, is rendered once; a word
that is missing tells of a part that the template does not write. Texts that a template cuts by what they say are looked
for row by row, which takes no rendering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.conversation import ASSISTANT, THOUGHTS, Conversation, Message
from tunesmith.data.row import holds_nothing
from tunesmith.errors import DataError

CONTENT, CALLS, TOOLS = "content", "tool_calls", "tools"
PARAMETERS = "names of parameters in tools"
BOOKKEEPING = {
    *("id of tool_calls", "index of tool_calls", "tool_call_id", "id", "index", "id of content"),
    *("cache_control", "cache_control of content", "signature of content"),
}
"""Parts that connect a call with its result, or are for a server, and say nothing: a template may leave them out."""
SAID_BY_TOOLS = ("name", "description", "enum", "const")
"""Keywords of a tool's schema that a template has to write. Others, such as ``title`` and ``format``, are counted where
it leaves them out, and so is what a tool returns: models are mostly not told that."""
THOUGHT_END = "</think>"

TextOf = Callable[[Conversation], str]
"""The whole text of a conversation under a template."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a conversation: the turn that holds it (None: beside the turns), its key, and who says it.

    ``meant``: leaving it out is what the template is made for, so that it is counted and not refused.
    """

    turn: int | None
    key: str
    role: str = ""
    meant: bool = False

    @property
    def kind(self) -> str:
        """What the ledger calls it."""
        return self.key if self.turn is None else f"{self.key} of {self.role} turns"

    @property
    def place(self) -> str:
        """What an error calls it."""
        return self.key if self.turn is None else f"{self.key} of turn {self.turn} ({self.role})"


def refusal(parts: Sequence[Part], where: str) -> DataError:
    """The error of a row of which some parts are not written."""
    places = ", ".join(part.place for part in parts[:3])
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return DataError(
        f"the template does not write {places}{more}",
        where=where,
        remedy="use a template that does, remove it from the row, or set unwritten: report to go on without it",
    )


@dataclass(slots=True)
class _Probe:
    """A conversation whose texts are words of their own, and the words of each part; parts without any are ``mute``."""

    conversation: Conversation
    words: dict[Part, list[str]] = field(default_factory=dict)
    mute: list[Part] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    number: int = 0

    def word(self, part: Part, name: str | None = None) -> str:
        """A new word for ``part``; the same word again for the same ``name``. Nine letters and digits, which suits
        templates that look at the form of ids."""
        known = None if name is None else self.names.get(name)
        if known is None:
            self.number += 1
            known = f"Zq{self.number:07d}"
        if name is not None:
            self.names[name] = known
        self.words.setdefault(part, []).append(known)
        return known

    def figure(self, part: Part, value: float) -> float:
        """A new number for ``part``, whole where ``value`` is."""
        self.number += 1
        made = 98_000_000 + self.number if isinstance(value, int) else 98_000_000.5 + self.number
        self.words.setdefault(part, []).append(str(made))
        return made


class Unwritten:
    """Finds the parts of conversations that one template does not write.

    Args:
        text_of: renders a conversation; it may raise DataError for one that the template refuses.
    """

    def __init__(self, text_of: TextOf) -> None:
        self._text_of = text_of
        self._found: dict[Hashable, tuple[Part, ...]] = {}

    def parts(self, conversation: Conversation, text: str) -> list[Part]:
        """The parts of ``conversation`` that do not stand in ``text``, its rendering."""
        shape = _shape(conversation)
        if shape not in self._found:
            self._found[shape] = tuple(self._of_shape(conversation))
        missing = list(self._found[shape])
        known = {(part.turn, part.key) for part in missing}
        for part, words in _absent(conversation, text):
            if (part.turn, part.key) not in known:
                meant = part.key == THOUGHTS and self._written_at_the_end(conversation, part, [words])
                missing.append(replace(part, meant=meant))
                known.add((part.turn, part.key))
        return missing

    def _of_shape(self, conversation: Conversation) -> Iterator[Part]:
        probe = _probe(conversation)
        try:
            text = self._text_of(probe.conversation)
        except DataError:  # it looks at what texts say: the search row by row has to do
            return
        stands = self._by_itself(probe, text)
        absent = {part: words for part, words in probe.words.items() if not all(stands(part, word) for word in words)}
        for part, words in absent.items():
            if part.turn is None and part.key != TOOLS and Part(None, TOOLS) in absent:  # it says all of them
                continue
            meant = part.meant or part.key in BOOKKEEPING or (part.key == "name" and part.role == "tool")
            if part.key == THOUGHTS:
                meant = self._written_at_the_end(probe.conversation, part, words)
            yield replace(part, meant=meant)
        for part in probe.mute:
            if self._text_of(_without(probe.conversation, part)) == text:
                yield replace(part, meant=part.key in BOOKKEEPING)

    def _by_itself(self, probe: _Probe, text: str) -> Callable[[Part, str], bool]:
        """Whether a word of a part stands in ``text``, the probe's rendering, and not only as the word of another part:
        the list of tools and the calls name the same functions and parameters, and each has to be written itself."""
        turns = probe.conversation.messages
        listed, told = (
            {word for part, words in probe.words.items() if (part.turn is None) == beside for word in words}
            for beside in (True, False)
        )
        first = next((index for index, turn in enumerate(turns) if turn.extra.get(CALLS)), 0)
        before, both = text, listed & told
        if not first:
            both = set()
        elif both:
            try:
                before = self._text_of(replace(probe.conversation, messages=turns[:first]))
            except DataError:
                both = set()

        def stands(part: Part, word: str) -> bool:
            if word not in both:
                return word in text
            return word in before if part.turn is None else text.count(word) > before.count(word)

        return stands

    def _written_at_the_end(self, conversation: Conversation, part: Part, words: list[str]) -> bool:
        """Whether a turn's part is written while nothing follows the turn: thoughts are left out once read."""
        if part.turn is None or part.turn + 1 >= len(conversation.messages):
            return False
        try:
            text = self._text_of(replace(conversation, messages=conversation.messages[: part.turn + 1]))
        except DataError:
            return False
        return all(_contains(text, word) for word in words)


def _shape(conversation: Conversation) -> Hashable:
    """What decides which parts are written, as far as it is not in the texts."""
    turns = tuple(
        [
            (turn.role, not turn.content.strip(), _kind(turn.extra) if turn.extra else None)
            for turn in conversation.messages
        ]
    )
    switches = json.dumps(conversation.switches, sort_keys=True, default=str) if conversation.switches else ""
    return turns, tuple([_kind(tool) for tool in conversation.tools]), switches


def _kind(value: Any) -> Hashable:
    kind: Any = type(value)
    if kind is dict:
        return tuple([(key, _kind(item)) for key, item in value.items()])
    if kind is list:
        return tuple([_kind(item) for item in value])
    return kind if value else (kind, False)


def _probe(conversation: Conversation) -> _Probe:
    probe = _Probe(conversation)
    tools = tuple(_marked_schema(tool, probe) for tool in conversation.tools)
    turns = tuple(_marked_turn(turn, probe, index) for index, turn in enumerate(conversation.messages))
    probe.conversation = replace(conversation, messages=turns, tools=tools)
    return probe


def _marked_turn(turn: Message, probe: _Probe, index: int) -> Message:
    content = probe.word(Part(index, CONTENT, turn.role)) if turn.content.strip() else turn.content
    extra: dict[str, Any] = {}
    for key, value in turn.extra.items():
        part = Part(index, key, turn.role)
        before = probe.number
        if key == CALLS:
            extra[key] = [_marked_call(call, probe, part) for call in value]
        elif key in ("tool_call_id", "id", "name") and isinstance(value, str) and value.strip():
            extra[key] = probe.word(part, value)
        else:
            extra[key] = _marked(value, probe, part)
            if probe.number == before and not holds_nothing(value):
                probe.mute.append(part)
    return replace(turn, content=content, extra=extra)


def _marked_call(call: dict[str, Any], probe: _Probe, part: Part) -> dict[str, Any]:
    """A call with words in place of its name, its arguments and their names; what else it has is a part by itself."""
    made: dict[str, Any] = {}
    for key, value in call.items():
        beside = replace(part, key=f"{key} of {CALLS}")
        if key == "function":
            made[key] = _marked_call(value, probe, part)
        elif key == "arguments":
            made[key] = _marked(value, probe, part, named=True)
        elif key in ("name", "id") and isinstance(value, str) and value:
            made[key] = probe.word(part if key == "name" else beside, value)
        else:
            made[key] = value if key == "type" else _marked(value, probe, beside)
    return made


def _marked(value: Any, probe: _Probe, part: Part, *, named: bool = False) -> Any:
    """``value`` with words in place of its texts and numbers, and of its keys where those are names of parameters."""
    if isinstance(value, dict):
        return {
            probe.word(part, _parameter(key)) if named else key: _marked(item, probe, part, named=named)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_marked(item, probe, part, named=named) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return probe.figure(part, value)
    return probe.word(part) if isinstance(value, str) and value.strip() else value


def _marked_schema(value: Any, probe: _Probe, key: str = "", place: str = "") -> Any:
    """The schema of a tool, or a value in it that stands under ``key``, with words in place of what it says.

    Args:
        place: ``parameters`` or ``return`` for what lies below that.
    """
    if isinstance(value, dict):
        if key == "properties":
            names = Part(None, PARAMETERS, meant=place == "return")
            return {
                probe.word(names, _parameter(name)): _marked_schema(item, probe, place=place)
                for name, item in value.items()
            }
        return {
            name: _marked_schema(item, probe, name, place or (name if name in ("parameters", "return") else ""))
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_marked_schema(item, probe, key, place) for item in value]
    if key == "required" and isinstance(value, str):
        return probe.names.get(_parameter(value), value)
    if key == "type" or key.startswith("$"):  # templates look at the first, and the second are addresses
        return value
    meant = key not in SAID_BY_TOOLS or place == "return"
    what = "what they return" if place == "return" else f"{key} of parameters" if place else key
    part = Part(None, f"{what} in {TOOLS}" if place or meant else TOOLS, meant=meant)
    if key == "name" and isinstance(value, str) and value.strip():
        return probe.word(part, value)
    return _marked(value, probe, part)


def _parameter(name: str) -> str:
    """What a parameter is called in ``_Probe.names``, where names of functions are as they are."""
    return f"parameter {name}"


def _without(conversation: Conversation, part: Part) -> Conversation:
    turns = list(conversation.messages)
    at = part.turn or 0
    turns[at] = replace(turns[at], extra={key: value for key, value in turns[at].extra.items() if key != part.key})
    return replace(conversation, messages=tuple(turns))


# row by row -----------------------------------------------------------------------------------------------------------


def _absent(conversation: Conversation, text: str) -> Iterator[tuple[Part, str]]:
    """Parts whose words do not stand in the text, and those words."""
    at = 0
    for index, turn in enumerate(conversation.messages):
        place = -1 if turn.extra or THOUGHT_END in turn.content else text.find(turn.content, at)
        if place >= 0:  # most turns, without a detour
            at = place + len(turn.content)
            continue
        for key, words in _texts(turn):
            place = text.find(words, at) if key == CONTENT else text.find(words)
            if place >= 0:
                at = place + len(words) if key == CONTENT else at
            elif not _contains(text, words):
                yield Part(index, key, turn.role), words


def _texts(turn: Message) -> Iterator[tuple[str, str]]:
    """The texts of a turn, each with its key, trimmed as templates trim them."""
    content = turn.content.strip()
    if turn.role == ASSISTANT and THOUGHT_END in content:
        thought, _, content = content.rpartition(THOUGHT_END)
        yield from ((THOUGHTS, words) for piece in re.split("</?think>", thought) if (words := piece.strip()))
        content = content.strip()
    if content:
        yield CONTENT, content
    for key, value in turn.extra.items():
        if key == CALLS:  # what else a call has is looked for in a kind of row, not in each
            value = [{name: call["function"].get(name) for name in ("name", "arguments")} for call in value]
        if key in (THOUGHTS, CALLS):
            yield from ((key, words) for words in _leaves(value))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str) and value.strip():
        yield value.strip()


def _contains(text: str, words: str) -> bool:
    """Whether ``words`` stand in ``text``, be it as JSON writes them or with other white space."""
    if words in text:
        return True
    squeezed = _squeezed(text)
    return any(_squeezed(form) in squeezed for form in (words, json.dumps(words, ensure_ascii=False)[1:-1]))


def _squeezed(text: str) -> str:
    return re.sub(r"[\s\\]", "", text)
