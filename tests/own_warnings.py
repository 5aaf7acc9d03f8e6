"""Deprecated calls of ours are errors in tests, whichever file the warning names.

Filters go by the module that a warning is attributed to. A library that warns without ``stacklevel`` names itself, so a
filter for ``tunesmith`` never sees what our call has caused. Here the callers are looked at: the first frame outside of
the library that warns decides whose call it was.
"""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import Any

BETWEEN = {"functools", "contextlib", "warnings", "typing_extensions", "own_warnings"}
"""Packages that may stand between a caller and the function that it calls."""

_warn = warnings.warn


def install() -> None:
    """From now on ``warnings.warn`` raises what a call of tunesmith has caused, if it is about something deprecated."""
    warnings.warn = warn


def warn(message: Any, category: type[Warning] | None = None, stacklevel: int = 1, *more: Any, **keywords: Any) -> None:
    """In the place of ``warnings.warn``."""
    kind = type(message) if isinstance(message, Warning) else category or UserWarning
    if issubclass(kind, FutureWarning | DeprecationWarning) and caller(sys._getframe(1)) == "tunesmith":
        raise message if isinstance(message, Warning) else kind(message)
    _warn(message, category, stacklevel + 1, *more, **keywords)


def caller(frame: FrameType | None) -> str | None:
    """The package that called into the package of ``frame``; None where nobody did."""
    library = _package(frame)
    while frame is not None and _package(frame) in {library, *BETWEEN}:
        frame = frame.f_back
    return _package(frame)


def _package(frame: FrameType | None) -> str | None:
    return None if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]
