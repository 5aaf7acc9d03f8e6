"""Small data files for tests, and what reading them refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError

GOOD = b'{"text": "a"}\n{"text": "b"}\n'
"""Two rows of JSON lines."""


def write(folder: Path, content: bytes, name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def refusal(data: str | list[str]) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(data)
    assert caught.value.exit_code == 3
    return str(caught.value)
