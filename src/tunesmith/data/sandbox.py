"""Chat templates from outside run in one child process with a limit on time and memory; ours run right here.

A template can ask for 10 GB in a few characters, which jinja's sandbox does not forbid; a limit of the operating system
does. What templates know and how they run is ``jinja_engine.py``'s.
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
import time
from functools import lru_cache
from typing import Any

from tunesmith.data import jinja_engine
from tunesmith.data.jinja_engine import MAX_RENDERED_CHARACTERS, Engine, PrefixPoints, Shared

MAX_SECONDS = 10.0
"""Time for one conversation, the template's compilation included; more where it is rendered for many cuts."""
CUTS = 100
"""Renderings of a conversation that have to do with that time."""
MAX_ANSWER_BYTES = 16 * MAX_RENDERED_CHARACTERS
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
"""Environment variables of the child; nothing secret is among them."""

LIMITS = ("it takes longer than", "it takes more than", "it writes more than", "it ended the process")
"""How a refusal begins that came from a limit and not from the template."""

_engine = Engine()


class TemplateRefusal(Exception):
    """The template raised, or took more time, memory or text than it may."""


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
    whole, others = render_shared(source, variables, messages, tools, cuts, ours=ours, today=today)
    return [whole, *(whole[:same] + rest for same, rest in others)]


def render_shared(
    source: str,
    variables: dict[str, Any],
    messages: list[Any],
    tools: list[Any],
    cuts: PrefixPoints,
    *,
    ours: bool,
    today: str | None = None,
) -> Shared:
    """``render`` for many cuts of a long conversation: the first text, and where the others begin to differ from it.

    Raises:
        TemplateRefusal: with the template's own words where it has some.
    """
    if ours:
        try:
            return _engine.render(source, variables, messages, tools, cuts, today)
        except Exception as error:  # a template raises what it likes
            raise TemplateRefusal(str(error)) from error
    return _child().render(source, variables, messages, tools, cuts, today)


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
        self._source: str | None = None
        self._waiting = b""

    def render(
        self,
        source: str,
        variables: dict[str, Any],
        messages: list[Any],
        tools: list[Any],
        cuts: PrefixPoints,
        today: str | None = None,
    ) -> Shared:
        """See the function ``render_shared``."""
        process = self._started()
        given = None if source == self._source else source
        seconds = MAX_SECONDS * max(1.0, len(cuts) / CUTS)
        deadline = time.monotonic() + seconds
        try:
            assert process.stdin is not None
            jinja_engine.send(process.stdin, [given, variables, messages, tools, cuts, today])  # type: ignore[arg-type]
            fine, answer = jinja_engine.receive(lambda size: self._read(process, size, deadline))
        except TimeoutError:
            self.stop()
            raise TemplateRefusal(f"it takes longer than {seconds:g} s for one conversation") from None
        except (EOFError, OSError, ValueError):
            self.stop()
            raise TemplateRefusal("it ended the process that renders it") from None
        self._source = source
        if not fine:
            raise TemplateRefusal(str(answer))
        whole, others = answer
        return str(whole), [(int(same), str(rest)) for same, rest in others]

    def stop(self) -> None:
        """End the process."""
        if self._process is not None and self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = self._source = None
        self._waiting = b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._source, self._waiting = None, b""
            self._process = subprocess.Popen(
                [sys.executable, "-P", jinja_engine.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
                close_fds=True,
                bufsize=0,
            )
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


_the_child: Child | None = None


def _child() -> Child:
    """This process's child; a process made by forking gets its own."""
    global _the_child
    if _the_child is None or _the_child.owner != os.getpid():
        _the_child = Child()
        atexit.register(_the_child.stop)
    return _the_child
