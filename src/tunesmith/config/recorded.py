"""A run's record as anybody may have left it: whether it holds what a record holds, before any of it is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith import assets
from tunesmith.config.paths import PATHS

_PARTS = ("adapter", "model", "data", "plan", "result", "versions")
"""Parts of a record that are objects, where they are there."""


def problem_of(facts: Any) -> str | None:
    """What is wrong with the content of a ``run.json``; None where it can be used."""
    if not isinstance(facts, dict):
        return f"it holds a {type(facts).__name__}, not an object"
    settings, origins = facts.get("settings"), facts.get("origins")
    if not isinstance(settings, dict) or not settings:
        return "it has no settings"
    if origins is not None and not _all_texts(origins):
        return "origins is no object of texts"
    wrong = [name for name in _PARTS if not isinstance(facts.get(name, {}), dict | None)]
    return f"{wrong[0]} is no object" if wrong else None


STARTED_IN = "started_in"
"""Key of a record: the folder that the run was started in, as seen from the run folder."""


def started_in(folder: Path) -> str:
    """The value of ``STARTED_IN`` for a run that starts now; both folders may be moved together."""
    try:
        return os.path.relpath(Path.cwd(), folder.resolve())
    except ValueError:  # another drive
        return str(Path.cwd())


def in_place(settings: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A record's settings, with each relative path as it is reached from here.

    A path stays as it is written where nothing lies at its place: it may be a text, or a name on the hub.

    Args:
        settings: setting -> its value, as recorded.
        facts: the record.
        folder: the run folder.
    """
    told = facts.get(STARTED_IN)
    start = Path(os.path.normpath(folder.resolve() / told)) if isinstance(told, str) else Path.cwd()
    if start == Path.cwd():
        return dict(settings)
    return {path: _reached(value, start) if path in PATHS else value for path, value in settings.items()}


def _reached(value: Any, start: Path) -> Any:
    if isinstance(value, list):
        return [_reached(one, start) for one in value]
    if not isinstance(value, str) or not value or os.path.isabs(value) or assets.embedded_model(value) is not None:
        return value
    place = os.path.normpath(start / value)
    return place if os.path.exists(place) else value


def _all_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
