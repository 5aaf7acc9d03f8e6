"""The token that the hub wants; it comes from the environment alone."""

from __future__ import annotations

import os

from tunesmith.errors import StorageError


def hub_token(repository: str, remedy: str) -> str:
    """The token for an upload.

    Args:
        repository: what it is for, in the error.
        remedy: what to do where there is none.

    Raises:
        StorageError: it is not set.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise StorageError("HF_TOKEN is not set, and the hub wants a token", where=repository, remedy=remedy)
    return token
