"""Chat templates run in jinja's sandbox; as a program, the same behind a pipe, with a cap on memory.

This file imports nothing of tunesmith, so that a child process starts quickly and holds no secrets. What a template may
not do at all is jinja's sandbox's; how long it may take is ``sandbox.py``'s.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_RENDERED_CHARACTERS = 16 * 2**20
MAX_MEMORY_BYTES = 2**30
LONG, BLOCK = 24, 16
"""Cuts of a chat above which it is rendered in blocks, and the least messages of a block."""
ENOUGH_CHARACTERS, ENOUGH_SECONDS = 2**20, 0.5
"""How much text and time are enough for one answer; further chats are asked for again."""
HEADER = struct.Struct(">I")
GIVEN = ("messages", "tools", "add_generation_prompt")
"""Names that every template is given."""

PrefixPoints = Sequence[tuple[int, bool]]
"""(number of messages, whether to add the generation prompt), one for each text that is wanted."""
Shared = tuple[str, list[tuple[int, str]]]
"""The first text, and of each other one: the characters that it begins with in common, and what follows them."""


class GenerationBlock(Extension):
    """Accepts ``{% generation %}`` ... ``{% endgeneration %}`` and writes what stands inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja reads it from the class)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class GuardedNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class Engine:
    """Compiled templates of one process; the names they know are those that transformers gives them."""

    def __init__(self) -> None:
        self._templates: dict[str, Any] = {}
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
        )
        self._environment.filters["tojson"] = _to_json
        self._environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "namespace": GuardedNamespace,
        }

    def render(
        self,
        source: str,
        variables: dict[str, Any],
        messages: list[Any],
        tools: list[Any],
        cuts: PrefixPoints,
        today: str | None = None,
    ) -> Shared:
        """The texts of the first messages, one for each cut, as far as they differ from the first text; ``today`` is
        the day that templates write, as ISO does.

        Raises:
            Exception: whatever the template raises; ValueError when it writes too much.
        """
        if today is not None:
            variables = {"strftime_now": datetime.fromisoformat(today).strftime} | variables
        whole, *others = cuts

        def text_of(part: list[Any], prompt: bool) -> str:
            return self._text(source, variables, part, tools, prompt)

        first = text_of(messages[: whole[0]], whole[1])
        if len(others) > LONG:
            found = _by_blocks(first, text_of, messages[: whole[0]], whole[1], others)
            if found is not None:
                return first, found
        return first, [_beyond(first, text_of(messages[:number], prompt)) for number, prompt in others]

    def names_read(self, source: str) -> frozenset[str]:
        """Names that a template looks up among those it is given, without running any of it; what every row has and
        what the template itself sets first is not among them.
        """
        try:
            names = list(_names(self._environment.parse(source)))
        except (TemplateError, RecursionError):
            return frozenset()
        first = dict(reversed(names))
        known = {"loop", *GIVEN, *self._environment.globals}
        return frozenset(name for name, read in first.items() if read and name not in known)

    def _text(self, source: str, variables: dict[str, Any], messages: list[Any], tools: list[Any], prompt: bool) -> str:
        if source not in self._templates:
            self._templates[source] = self._environment.from_string(source)
        text: str = self._templates[source].render(
            messages=messages,
            tools=tools or None,
            add_generation_prompt=prompt,
            **({"documents": None} | variables),
        )
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"it writes more than {MAX_RENDERED_CHARACTERS} characters")
        return text


def _beyond(whole: str, text: str) -> tuple[int, str]:
    """How many characters ``text`` has in common with the start of ``whole``, and what follows them in ``text``.

    Texts of a chat are mostly the start of its whole text: said so, hundreds of them are as quick to hand on as one.
    """
    same, differs = 0, min(len(whole), len(text)) + 1
    if whole.startswith(text):
        return len(text), ""
    while differs - same > 1:
        middle = (same + differs) // 2
        if whole[same:middle] == text[same:middle]:
            same = middle
        else:
            differs = middle
    return same, text[same:]


def _by_blocks(
    whole: str, text_of: Callable[[list[Any], bool], str], messages: list[Any], prompt: bool, cuts: PrefixPoints
) -> list[tuple[int, str]] | None:
    """The texts of many cuts of a long chat in time that grows with its turns and not with their square.

    The chat is rendered in blocks of turns, each behind the chat's own first turns, and a cut is looked for in its
    block. That is right where the blocks, joined, are the whole text; otherwise None, and each cut has to be rendered
    with all that stands before it.
    """
    ends = _block_ends(messages)
    if ends is None:
        return None
    start, done = 0, 0
    found: dict[tuple[int, bool], tuple[int, str]] = {}
    try:
        for end, head in ends:
            made = text_of([*messages[:head], *messages[start:end]], prompt and end == len(messages))
            opening = _beyond(made, text_of(messages[:head], False))[0] if head else 0  # a last turn may end otherwise
            for number, asked in cuts:
                if start < number <= end:
                    text = text_of([*messages[:head], *messages[start:number]], asked)
                    if text[:opening] != made[:opening]:
                        return None
                    same, rest = _beyond(whole[done : done + len(text)], text[opening:])
                    found[number, asked] = done + same, rest
            start, done = end, done + _beyond(whole[done : done + len(made)], made[opening:])[0]
    except Exception:  # the template refuses a chat of other turns than the row's
        return None
    joined = done == len(whole) and whole.endswith(made[opening:])
    return [found[number, asked] for number, asked in cuts] if joined else None


def _block_ends(messages: list[Any]) -> list[tuple[int, int]] | None:
    """Where blocks of a chat end, and how many of its first messages stand in front of each; None: it has no blocks.

    A block begins with no result of a call, which belongs to the call before it, and follows turns of the same roles
    as in the chat, at an even distance: some templates count.
    """
    roles = [message.get("role") for message in messages]
    heads = range(2, min(12, len(messages)))
    ends, head, start = [], 0, 0
    for end in range(BLOCK, len(messages) - BLOCK):
        if end < start + BLOCK or roles[end] == "tool":
            continue
        known = (
            size for size in heads if roles[size - 1 : size + 1] == roles[end - 1 : end + 1] and (end - size) % 2 == 0
        )
        following = next(known, None)
        if following is not None:
            ends.append((end, head))
            start, head = end, following
    return [*ends, (len(messages), head)] if ends else None


def _names(node: nodes.Node) -> Iterator[tuple[str, bool]]:
    """The names in a template in the order in which they are met, and whether they are read there and not set."""
    if isinstance(node, nodes.Name):
        yield node.name, node.ctx == "load"
    elif isinstance(node, nodes.Macro):
        yield node.name, False
    inner = list(node.iter_child_nodes())
    if isinstance(node, (nodes.Assign, nodes.For)):  # what is set comes after what it is set to
        source = node.node if isinstance(node, nodes.Assign) else node.iter
        inner = [source, node.target, *(child for child in inner if child is not source and child is not node.target)]
    for child in inner:
        yield from _names(child)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name with an underscore in front, such as {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    """JSON as chat templates want it: characters as they are and nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def send(stream: BinaryIO, text: str) -> None:
    """Write one message, which is JSON: its length in four bytes, then itself."""
    body = text.encode()
    left = memoryview(HEADER.pack(len(body)) + body)
    while left:  # a signal may end the writing early
        left = left[stream.write(left) :]
    stream.flush()


def receive(read: Callable[[int], bytes]) -> Any:
    """Read one message; EOFError at the end of the stream."""
    header = read(HEADER.size)
    if len(header) < HEADER.size:
        raise EOFError
    return json.loads(read(HEADER.unpack(header)[0]))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system: the time limit remains
        return
    for kind, limit in (("RLIMIT_AS", MAX_MEMORY_BYTES), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        resource.setrlimit(getattr(resource, kind), (limit, limit))


def serve() -> None:
    """Answer requests on standard input until it ends: [[[number, frame], ...], [chat, ...]]; an empty list says first
    that it has begun.

    A frame is [source, variables, today] and kept under its number; a chat is [number of its frame, further variables,
    messages, tools, cuts]. The answer has one entry for each of the first chats, and for one at least.
    """
    _limit_memory()
    engine = Engine()
    frames: dict[int, list[Any]] = {}
    send(sys.stdout.buffer, "[]")
    while True:
        try:
            new, chats = receive(sys.stdin.buffer.read)
        except EOFError:
            return
        frames.update(new)
        send(sys.stdout.buffer, json.dumps(_answers(engine, frames, chats)))


def _answers(engine: Engine, frames: dict[int, list[Any]], chats: list[list[Any]]) -> list[list[Any]]:
    began, size = time.monotonic(), 0
    made: list[list[Any]] = []
    for number, switches, messages, tools, cuts in chats:
        source, variables, today = frames[number]
        try:
            whole, others = engine.render(source, variables | switches, messages, tools, cuts, today)
        except MemoryError:
            if made:  # it may fit when it is alone
                break
            made.append([False, f"it takes more than {MAX_MEMORY_BYTES} bytes of memory"])
        except Exception as error:  # whatever a template raises
            made.append([False, f"{error}"[:1000] or type(error).__name__])
        else:
            made.append([True, [whole, others]])
            size += len(whole) + sum(len(rest) for _, rest in others)
        if size > ENOUGH_CHARACTERS or time.monotonic() - began > ENOUGH_SECONDS:
            break
    return made


if __name__ == "__main__":
    serve()
