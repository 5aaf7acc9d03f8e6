"""Settings that let code run: which they are is a mark in the schema, so that a new one cannot be forgotten anywhere.

A permission is given on today's command line. A run's record, what lies beside a model, and the configuration of
somebody else never carry one: whoever reads values back (``resolve.from_values``) loses them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.marks import Permission
from tunesmith.config.schema import SECTIONS

PERMISSIONS: dict[str, Permission] = {
    f"{section}.{name}": mark
    for section, model in SECTIONS.items()
    for name, field in model.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Permission)
}
"""Path of a setting that lets code run -> its mark."""

COMMAND_LINE_ONLY = {path: mark.remedy for path, mark in PERMISSIONS.items() if not mark.in_files}
"""Those that no configuration file may give -> what to do instead."""


def permissions_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The permissions among values by path: what this process may hand on to a part or a child of itself."""
    return {path: values[path] for path in PERMISSIONS if path in values}


def without_permissions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path as somebody else may have written them, without what would let code run."""
    return {path: value for path, value in values.items() if path not in PERMISSIONS}
