"""Words for the user that are not errors: choices made, translations, things to know.

The engine says them here; ``cli`` decides how they are shown and ``run.json`` keeps them. Nothing here prints by itself
once a listener is attached.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tunesmith.secrets import redacted
from tunesmith.visible import visible

VERBOSITY = "TUNESMITH_VERBOSITY"
"""Variable with how much is said, which processes hand on: ``quiet``, ``verbose``, or nothing for the usual."""

_asked: set[str] = set()
_collected: list[str] = []
_kinds: set[str] = set()
_details: set[str] = set()


def verbosity() -> str:
    """How much is said: ``quiet`` (results and errors alone), ``normal``, or ``verbose`` (libraries talk as well)."""
    return os.environ.get(VERBOSITY) or "normal"


def _to_stderr(text: str) -> None:
    if os.environ.get("RANK", "0") == "0" and verbosity() != "quiet":  # of several processes one talks
        print(f"note: {visible(text)}", file=sys.stderr)


_listener: Callable[[str], None] = _to_stderr


def notify(text: str, *, kind: str | None = None, detail: bool = False) -> None:
    """Tell the user ``text``, without secrets; in one process no text is said twice, and one of each ``kind``.

    Args:
        text: one sentence.
        kind: what the text is one of many of.
        detail: nobody misses it who does not ask for it: it is said under ``--verbose`` alone.
    """
    if text in _asked or kind in _kinds:  # by every row, as a rule; to look for secrets takes longer than to read one
        return
    _asked.add(text)
    text = redacted(text)
    if text in _collected:
        return
    if kind is not None:
        _kinds.add(kind)
    _collected.append(text)
    if detail:
        _details.add(text)
    if not detail or verbosity() == "verbose":
        _listener(text)


def collected(*, details: bool = True) -> list[str]:
    """Everything there was to say so far, in order, with or without the details."""
    return [text for text in _collected if details or text not in _details]


def listen(listener: Callable[[str], None]) -> None:
    """Send what is said from now on to ``listener``."""
    global _listener
    _listener = listener


def clear() -> None:
    """Forget what was said: a new run in the same process starts with a clean page."""
    _asked.clear()
    _collected.clear()
    _kinds.clear()
    _details.clear()
