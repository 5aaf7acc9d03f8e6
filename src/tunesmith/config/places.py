"""Folders of this machine that are ours: where things are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from tunesmith.errors import StorageError

VARIABLE = "TUNESMITH_CACHE"


def cache_folder(wanted: str | None = None) -> Path:
    """The folder of kept things: ``wanted``, else ``TUNESMITH_CACHE``, else the user's cache folder.

    Raises:
        StorageError: it is in the home folder, and this user has none.
    """
    try:
        if wanted:
            return Path(wanted).expanduser()
        if os.environ.get(VARIABLE):
            return Path(os.environ[VARIABLE]).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"
    except RuntimeError:
        raise StorageError("this user has no home folder", remedy=f"set {VARIABLE} to a folder") from None
