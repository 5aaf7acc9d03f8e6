"""Chat templates from outside run in one child process with a limit on time and memory; ours run right here.

A template can ask for 10 GB in a few characters, which jinja's sandbox does not forbid; a limit of the operating system
does. What templates know and how they run is ``jinja_engine.py``'s.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tunesmith.data import jinja_engine
from tunesmith.data.jinja_engine import ENOUGH_CHARACTERS, MAX_RENDERED_CHARACTERS, Engine, PrefixPoints, Shared

MAX_SECONDS = 10.0
"""Time for one conversation, the template's compilation included; more where it is rendered for many cuts."""
START_SECONDS = 120.0
"""Time for the child to begin, which on a busy machine takes longer than it may render."""
CUTS = 100
"""Renderings of a conversation that have to do with that time."""
TOGETHER = 32
"""Conversations that the child is asked for at once: asking costs as much as rendering a short one."""
KNOWN_FRAMES = 8
"""Templates that the child keeps; more come only where templates are tried."""
MAX_ANSWER_BYTES = 16 * MAX_RENDERED_CHARACTERS
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
"""Environment variables of the child; nothing secret is among them."""

LIMITS = ("it takes longer than", "it takes more than", "it writes more than", "it ended the process")
"""How a refusal begins that came from a limit and not from the template."""

_engine = Engine()


class TemplateRefusal(Exception):
    """The template raised, or took more time, memory or text than it may."""


class Frame(NamedTuple):
    """What the conversations of a run have in common: the template and names that it knows, whether it ships with
    tunesmith, and the day that it writes as today, as ``render`` takes them."""

    source: str
    variables: dict[str, Any]
    ours: bool
    today: str | None


class Request(NamedTuple):
    """One conversation to render; ``switches`` are further variables of its own, the others as ``render`` takes them.

    What comes back is ``Shared``: the first text, and where the others begin to differ from it.
    """

    frame: Frame
    switches: dict[str, Any]
    messages: list[Any]
    tools: list[Any]
    cuts: PrefixPoints


def render(
    source: str,
    variables: dict[str, Any],
    messages: list[Any],
    tools: list[Any],
    cuts: PrefixPoints,
    *,
    ours: bool,
    today: str | None = None,
) -> list[str]:
    """Texts of a conversation under a chat template.

    Args:
        source: the template.
        variables: further names that the template knows, such as ``eos_token``.
        messages: dictionaries of plain JSON values.
        tools: JSON schemas of tools.
        cuts: for each text that is wanted, how many messages and whether to add the generation prompt.
        ours: the template ships with tunesmith and needs no process of its own.
        today: the day that templates write as today, ``YYYY-MM-DD``; None is the day of the call.

    Raises:
        TemplateRefusal: with the template's own words where it has some.
    """
    whole, others = render_shared(Request(Frame(source, variables, ours, today), {}, messages, tools, cuts))
    return [whole, *(whole[:same] + rest for same, rest in others)]


def render_shared(request: Request) -> Shared:
    """The texts of one conversation.

    Raises:
        TemplateRefusal: with the template's own words where it has some.
    """
    (found,) = render_all([request])
    if isinstance(found, TemplateRefusal):
        raise found
    return found


def render_all(requests: Sequence[Request]) -> list[Shared | TemplateRefusal]:
    """The texts of several conversations, each as if it were alone."""
    theirs = iter(_child().render_all([request for request in requests if not request.frame.ours]))
    return [_rendered_here(request) if request.frame.ours else next(theirs) for request in requests]


def _rendered_here(request: Request) -> Shared | TemplateRefusal:
    (source, variables, _, today), switches, messages, tools, cuts = request
    try:
        return _engine.render(source, variables | switches, messages, tools, cuts, today)
    except Exception as error:  # a template raises what it likes
        refusal = TemplateRefusal(str(error))
        refusal.__cause__ = error
        return refusal


@lru_cache(maxsize=16)
def names_read(source: str) -> frozenset[str]:
    """The names that a chat template looks up in what it is given besides messages and tools; those of a template that
    cannot be read are none, for it renders nothing either."""
    return _engine.names_read(source)


class Child:
    """One process that renders; started again after it had to be stopped."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._frames: list[Frame] = []
        self._waiting = b""

    def render_all(self, requests: Sequence[Request]) -> list[Shared | TemplateRefusal]:
        """See the function ``render_all``."""
        made: list[Shared | TemplateRefusal] = []
        while len(made) < len(requests):
            made += self._first_of(requests[len(made) : len(made) + TOGETHER])
        return made

    def _first_of(self, requests: Sequence[Request]) -> list[Shared | TemplateRefusal]:
        """Texts of the first of some conversations, of one at least."""
        seconds = MAX_SECONDS * max(1.0, *(len(request.cuts) / CUTS for request in requests))
        try:
            answers = self._ask(requests, seconds)
        except (TimeoutError, EOFError, OSError, ValueError) as error:
            self.stop()
            if len(requests) > 1:  # which of them it was shows when each is alone
                return [found for request in requests for found in self._first_of([request])]
            if isinstance(error, TimeoutError):
                return [TemplateRefusal(f"it takes longer than {seconds:g} s for one conversation")]
            return [TemplateRefusal("it ended the process that renders it")]
        except BaseException:  # an interruption: an answer that nobody took would be taken for the next one
            self.stop()
            raise
        return [_shared(answer) if fine else TemplateRefusal(str(answer)) for fine, answer in answers]

    def _ask(self, requests: Sequence[Request], seconds: float) -> list[list[Any]]:
        """Hand over the first of some conversations, as many as are no burden together, and wait for the answers."""
        process = self._started()
        if len(self._frames) > KNOWN_FRAMES:
            self._frames.clear()
        new: list[Any] = []
        chats: list[str] = []
        size = 0
        for frame, *chat in requests:
            if frame not in self._frames:
                self._frames.append(frame)
                source, variables, _, today = frame
                new.append((len(self._frames) - 1, [source, variables, today]))
            chats.append(json.dumps([self._frames.index(frame), *chat]))
            size += len(chats[-1])
            if size > ENOUGH_CHARACTERS:
                break
        deadline = time.monotonic() + seconds
        assert process.stdin is not None
        jinja_engine.send(process.stdin, f"[{json.dumps(new)}, [{', '.join(chats)}]]")  # type: ignore[arg-type]
        answers: list[list[Any]] = jinja_engine.receive(lambda size: self._read(process, size, deadline))
        return answers

    def stop(self) -> None:
        """End the process."""
        if self._process is not None and self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None
        self._frames.clear()
        self._waiting = b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._frames.clear()
            self._waiting = b""
            self._process = subprocess.Popen(
                [sys.executable, "-P", jinja_engine.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
                close_fds=True,
                bufsize=0,
            )
            process, deadline = self._process, time.monotonic() + START_SECONDS
            jinja_engine.receive(lambda size: self._read(process, size, deadline))
        return self._process

    def _read(self, process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        """The next ``size`` bytes of the answer. What comes with them waits: an answer is one read, not one for its
        length and one for itself."""
        assert process.stdout is not None
        if size > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
        pieces, missing, descriptor = [self._waiting], size - len(self._waiting), process.stdout.fileno()
        while missing > 0:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = os.read(descriptor, 2**20)
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        found = b"".join(pieces)
        self._waiting = found[size:]
        return found[:size]


def _shared(answer: list[Any]) -> Shared:
    whole, others = answer
    return str(whole), [(int(same), str(rest)) for same, rest in others]


_the_child: Child | None = None


def _child() -> Child:
    """This process's child; a process made by forking gets its own."""
    global _the_child
    if _the_child is None or _the_child.owner != os.getpid():
        _the_child = Child()
        atexit.register(_the_child.stop)
    return _the_child
