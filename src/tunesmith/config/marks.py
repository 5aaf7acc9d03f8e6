"""What the schema says of a setting beside its type."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Permission:
    """Lets code run, so that today's command line must give it; see ``permissions.py``.

    Attributes:
        remedy: what to do where it was found elsewhere.
        in_files: whether a configuration file may say it, too, because alone it permits nothing.
    """

    remedy: str
    in_files: bool = False
