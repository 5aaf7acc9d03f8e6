"""Versions of the packages that are installed here."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def version_of(name: str) -> str | None:
    """The version of an installed package, None where there is none; looked up once, since each takes a millisecond."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
