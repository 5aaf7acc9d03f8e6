"""What the verbs print: every word goes through here, and none of it can steer a terminal (see ``visible.py``)."""

from __future__ import annotations

import sys
from typing import Any

from tunesmith.notices import verbosity
from tunesmith.secrets import redacted
from tunesmith.visible import as_json, visible


def say(text: str) -> None:
    """A result, on standard output."""
    print(visible(text))


def say_json(value: Any, indent: int | None = 2) -> None:
    """A result for programs, on standard output."""
    print(as_json(value, indent))


def say_file(text: str) -> None:
    """The text of a file, on standard output: exactly where it goes into a file or a pipe."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


def say_piece(text: str) -> None:
    """A piece of a text that is still being written, on standard output at once."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


def tell(text: str, *, always: bool = False) -> None:
    """Words beside the result, on standard error.

    Args:
        always: say it under ``--quiet`` too: errors, and questions that wait for an answer.
    """
    if always or verbosity() != "quiet":
        print(visible(redacted(text)), file=sys.stderr, flush=True)
