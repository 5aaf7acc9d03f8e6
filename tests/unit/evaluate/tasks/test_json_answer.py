"""JSON answers: equality as JSON means it, schemas, fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.row import Row
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.tasks import JsonTask
from tunesmith.evaluate.tasks.json_answer import same_json

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "year": {"$ref": "#/$defs/year"}},
    "required": ["city"],
    "$defs": {"year": {"type": "integer", "minimum": 0}},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return path


@settings(max_examples=50)
@given(VALUES)
def test_what_is_written_as_json_is_read_and_equal(value: Any) -> None:
    answer = JsonTask().read(f"\n{json.dumps(value)} ")
    assert answer.how == "json"
    assert same_json(answer.value, value)
    assert not same_json([answer.value], answer.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, 2], [2, 1], False),
        ("1", 1, False),
        (None, None, True),
        (None, False, False),
        ({"a": None}, {}, False),
    ],
)
def test_equality_is_that_of_json(one: Any, other: Any, same: bool) -> None:
    assert same_json(one, other) is same
    assert same_json(other, one) is same


def test_figures_count_validity_schema_and_fields(schema: Path, row: Callable[..., Row]) -> None:
    task = JsonTask(schema)
    reference = task.reference(row(), '{"city": "Paris", "year": 1889}')
    outputs = [
        '{"year": 1889.0, "city": "Paris"}',
        'Here you are:\n```json\n{"city": "Paris", "year": 1890}\n```',
        'So {"city": "Rome"} it is',
        '{"city": "Paris", "year": "1889"}',
        '{"city": "Paris", "year": 1889, "more": 1}',
        "[1, 2",
    ]
    scored = [task.score_answer(output, reference) for output in outputs]
    figures = task.figures(scored)
    assert [item.answer.how for item in scored] == ["json", "json_fenced", "json_in_text", "json", "json", "unreadable"]
    assert figures["exact_match"] == pytest.approx(1 / 6)
    assert figures["valid_json"] == pytest.approx(3 / 6)
    assert figures["schema_valid"] == pytest.approx(4 / 6)
    assert figures["per_field"] == {
        "city": {"accuracy": pytest.approx(4 / 6), "support": 6},
        "year": {"accuracy": pytest.approx(2 / 6), "support": 6},
    }
    assert figures["field_accuracy"] == pytest.approx(0.5)
    kinds = [task.mistake(item) for item in scored if item.answer.readable and not item.correct]
    assert kinds == ["wrong field year", "wrong field city", "breaks the schema", "fields too many"]


def test_without_schema_and_without_fields(row: Callable[..., Row]) -> None:
    task = JsonTask()
    scored = [task.score_answer(output, task.reference(row(), "[1, 2]")) for output in ("[1, 2]", "[1]")]
    assert task.figures(scored) == {"exact_match": 0.5, "valid_json": 1.0}
    assert task.mistake(scored[1]) == "wrong value"
    assert task.mistake(task.score_answer("{}", {"a": 1})) == "missing field a"


def test_rows_that_are_no_json_or_break_the_schema_are_named(schema: Path, row: Callable[..., Row]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row's answer is no JSON"):
        JsonTask().reference(row(), 'so {"a": 1}')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the row's answer breaks the schema: 'city' is a required"):
        JsonTask(schema).reference(row(), '{"year": 3}')


def test_a_schema_fetches_nothing(tmp_path: Path, row: Callable[..., Row]) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"$ref": "http://127.0.0.1:9/other.json"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"schema\.json: the schema refers to 'http://127.0.0.1:9/other.json'"):
        JsonTask(path).reference(row(), "{}")
