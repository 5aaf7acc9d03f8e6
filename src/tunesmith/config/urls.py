"""Names of data that are URLs: what must not stand in them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SECRET = re.compile(r"(sig|token|secret|password|credential|key)[\w-]*=", re.IGNORECASE)


def has_credentials(name: str) -> bool:
    """Whether a URL spells a password or a signature, which would end in records and logs."""
    if "://" not in name:
        return False
    try:
        parts = urlsplit(name)
        return parts.password is not None or _SECRET.search(parts.query) is not None
    except ValueError:
        return False


def without_credentials(name: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
