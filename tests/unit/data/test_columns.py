from __future__ import annotations

from typing import Any

import pytest

from tunesmith import notices
from tunesmith.data.columns import ColumnCheck
from tunesmith.data.formats import COLUMNS, KNOWN_COLUMNS, rename
from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError


def unread(check: ColumnCheck, name: str, columns: dict[str, str], **values: Any) -> frozenset[str]:
    row = Row(values, "f.jsonl", 2)
    return check.unread(row, rename(row, columns), name)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_mean_something_elsewhere_are_read_or_refused(name: str) -> None:
    for column in KNOWN_COLUMNS:
        if column in COLUMNS[name]:
            assert unread(ColumnCheck({}), name, {}, **{column: "x"}) == frozenset()
        else:
            with pytest.raises(DataError, match=f"f.jsonl:2: the column '{column}' is not read"):
                unread(ColumnCheck({}), name, {}, **{column: "x"})
            assert unread(ColumnCheck({}), name, {}, **{column: None}) == {column}


def test_other_columns_are_said_once_by_name() -> None:
    notices.clear()
    check = ColumnCheck({})
    for _ in range(3):
        assert unread(check, "text", {}, text="x", mood=1, id=3) == {"mood", "id"}
    unread(check, "text", {}, text="x", age=1)
    assert notices.collected() == [
        "f.jsonl: columns that are not read: mood",
        "f.jsonl: columns that are not read: age",
    ]


def test_columns_by_which_rows_are_held_out_are_no_news() -> None:
    notices.clear()
    check = ColumnCheck({}, {"topic", "system"})
    assert unread(check, "text", {}, text="x", topic=1, mood=2) == {"topic", "mood"}
    assert notices.collected() == ["f.jsonl: columns that are not read: mood"]
    with pytest.raises(DataError, match="'system' is not read"):
        unread(check, "text", {}, text="x", system="s")


def test_names_that_rename_nothing_are_refused() -> None:
    columns = {"text": "body"}
    check = ColumnCheck(columns)
    check.check_met()  # nothing has been read: other words tell of that
    unread(check, "text", columns, text="x", bodies="y")
    with pytest.raises(ConfigError, match=r"'body'.*did you mean 'bodies'"):
        check.check_met()
    assert unread(check, "text", columns, body="x") == frozenset()
    check.check_met()
    with pytest.raises(ConfigError, match=r"no column 'txt'.*did you mean 'text'"):
        unread(ColumnCheck({"txt": "body"}), "text", {"txt": "body"}, body="x")
    assert unread(ColumnCheck({"documents": "d"}), "rag", {"documents": "d"}, prompt="x", d="y") == frozenset()


def test_a_column_in_whose_place_another_is_read_is_not_read() -> None:
    columns = {"text": "body"}
    assert unread(ColumnCheck(columns), "text", columns, text="x", body="y") == {"text"}
