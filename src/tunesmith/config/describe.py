"""Ways to show a configuration: plain data, a table with origins, differences, and the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.config.names import SPELLINGS
from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import SECTIONS, RunConfig
from tunesmith.visible import one_line


def as_json(resolved: Resolved) -> dict[str, Any]:
    """``{"values": {path: value}, "origins": {path: text}}``."""
    return {"values": resolved.values(), "origins": resolved.origins}


def table(resolved: Resolved, *, only_written: bool = False) -> Iterator[str]:
    """Lines of a table ``name = value  origin``, by section."""
    values = resolved.values()
    shown = {path: shown_value(value) for path, value in values.items() if not only_written or resolved.explicit(path)}
    names = max((len(path.split(".")[1]) for path in shown), default=0)
    width = min(max((len(text) for text in shown.values()), default=0), 48)
    section = None
    for path, text in shown.items():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            yield f"[{section}]"
        origin = "" if resolved.origins[path] == "default" else resolved.origins[path]
        yield one_line(f"  {path.split('.')[1]:<{names}} = {text:<{width}}  {origin}").rstrip()


def differences(left: Resolved, right: Resolved) -> dict[str, tuple[Any, Any]]:
    """The paths whose values differ, with both values."""
    theirs = right.values()
    return {path: (value, theirs[path]) for path, value in left.values().items() if value != theirs[path]}


def json_schema() -> dict[str, Any]:
    """JSON schema of the whole configuration."""
    return RunConfig.model_json_schema()


def reference() -> Iterator[tuple[str, str, str, list[str]]]:
    """Every setting: path, default, meaning, other accepted spellings."""
    others: dict[str, list[str]] = {}
    for name, spelling in SPELLINGS.items():
        others.setdefault(spelling.path, []).append(name)
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            path = f"{section}.{name}"
            default = "required" if field.is_required() else shown_value(field.get_default(call_default_factory=True))
            yield (
                path,
                default,
                " ".join((field.description or "").split()),
                [n for n in others.get(path, []) if n != name],
            )


def shown_value(value: Any) -> str:
    """A value as a person would write it in a table."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "-")
    if isinstance(value, list):
        return ", ".join(map(shown_value, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
