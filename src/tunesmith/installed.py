"""The packages that are installed here, and their versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache


@cache
def version_of(name: str) -> str | None:
    """The version of an installed package, None where there is none; looked up once, since each takes a millisecond."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_importable(name: str) -> bool:
    """Whether a top-level module is there to be imported; a mere folder of its name in the working directory, such as
    ``wandb/`` with its runs, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
