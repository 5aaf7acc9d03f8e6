"""A run's record as anybody may have left it: whether it holds what a record holds, before any of it is used."""

from __future__ import annotations

from typing import Any

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


def _all_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
