"""Model classes of installed packages (entry point group ``tunesmith.models``): found by name, imported when chosen.

A class that is not installed under that group does not exist here, whatever a configuration names.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from tunesmith.errors import ModelError

GROUP = "tunesmith.models"


def model_class(name: str) -> Callable[..., Any]:
    """What an installed package offers under ``name``: called with (Resolved, Precision) it returns the model.

    Raises:
        ModelError: no installed package offers it, or importing it fails.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        known = f"offered are {', '.join(sorted(found))}" if found else "no installed package offers any"
        raise ModelError(
            f"no model class {name!r} in the entry points {GROUP}", where="model.model_class", remedy=known
        )
    try:
        loaded: Callable[..., Any] = found[name].load()
    except Exception as error:  # whatever the package raises when it is imported
        raise ModelError(f"cannot be imported ({error})", where=f"{GROUP}: {found[name].value}") from error
    return loaded
