"""One made-up row, for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunesmith.data.row import Row


@pytest.fixture
def row() -> Callable[..., Row]:
    """``row(column=value ...)``: a row that stands at rows.jsonl:3."""
    return lambda **values: Row(values, "rows.jsonl", 3)
