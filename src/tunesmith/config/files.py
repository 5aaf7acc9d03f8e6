"""Small files that decide something: read whole, and only where they are regular files of a size that makes sense."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 1_000_000


def open_regular(path: str | Path) -> int:
    """A descriptor of a regular file, to read. A pipe that nobody writes to, or a device without an end, is refused.

    Raises:
        OSError: there is no such file, it cannot be opened, or it is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL character in the name
        raise OSError(errno.EINVAL, str(error)) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """The contents of a file of at most ``most`` bytes.

    Raises:
        OSError: as ``open_regular``, or the file is larger.
    """
    with open(open_regular(path), "rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return raw


def parse_json(text: str | bytes, **options: Any) -> Any:
    """``json.loads`` with one kind of error for everything that is wrong with a text.

    Raises:
        ValueError: it is not JSON, or nested so deeply that it cannot be read.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | Path, most: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as ``read_bytes``.
        ValueError: it is not UTF-8 or not JSON.
    """
    return parse_json(read_bytes(path, most).decode("utf-8-sig"))
