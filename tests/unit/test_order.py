"""The order of the suite: slow files first, and every name in the list is that of a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import order


def test_slow_files_come_first_and_the_others_keep_their_order() -> None:
    files = ["unit/b.py", order.SLOWEST[1], "unit/a.py", order.SLOWEST[0], order.SLOWEST[1]]
    items = [SimpleNamespace(path=order.TESTS / file, number=number) for number, file in enumerate(files)]
    order.slowest_first(items)
    assert [item.number for item in items] == [3, 1, 4, 0, 2]


def test_every_slow_file_is_there() -> None:
    assert [name for name in order.SLOWEST if not Path(order.TESTS, name).is_file()] == []
    assert len(set(order.SLOWEST)) == len(order.SLOWEST)
