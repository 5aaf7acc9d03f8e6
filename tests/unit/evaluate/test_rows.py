"""Which rows a model is judged on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config.schema import DataSection
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import DataError
from tunesmith.evaluate.rows import check_same_rows, held_out_rows, sampled


def test_held_out_rows_are_those_of_the_settings(esnli: Path) -> None:
    everything = [row.where for row in read_rows(str(esnli))]
    named = DataSection(train_data="unread.jsonl", eval_data=str(esnli), eval_limit=7)
    assert [row.where for row in held_out_rows(named)] == everything[:7]
    assert [row.where for row in held_out_rows(named, limit=2)] == everything[:2]
    assert [row.where for row in held_out_rows(named, str(esnli))] == everything
    share = [row.where for row in held_out_rows(DataSection(train_data=str(esnli), dev_split=0.25))]
    assert len(share) == 6
    assert set(share) < set(everything)
    with pytest.raises(DataError, match="no rows to evaluate on"):
        held_out_rows(DataSection(train_data=str(esnli)))


def test_a_sample_is_fixed_by_its_seed_and_keeps_the_order() -> None:
    rows = [Row({}, "x.jsonl", line) for line in range(1, 101)]
    sample = sampled(rows, 20, 3)
    assert sample == sampled(rows, 20, 3) != sampled(rows, 20, 4)
    assert sample != rows[:20] == sampled(rows, 20, None)
    assert [row.line for row in sample] == sorted(row.line for row in sample)
    assert sampled(rows, None, 3) == sampled(rows, 200, 3) == rows


def test_other_rows_are_not_compared() -> None:
    rows = [Row({"a": line}, "x.jsonl", line) for line in range(1, 5)]
    check_same_rows("one", rows, "two", [Row(row.values, "copy.jsonl", row.line) for row in rows])
    with pytest.raises(DataError, match=r"two is judged on other rows than one: y\.jsonl:2 is not x\.jsonl:2"):
        check_same_rows("one", rows, "two", [rows[0], Row({"a": 0}, "y.jsonl", 2), *rows[2:]])
    with pytest.raises(DataError, match="two is judged on 3 rows and one on 4"):
        check_same_rows("one", rows, "two", rows[:3])
