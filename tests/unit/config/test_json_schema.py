"""A schema file is checked before anything else happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config.json_schema import read_json_schema
from tunesmith.config.load import load
from tunesmith.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read: No such file"),
        ("{", "not valid JSON"),
        ('{"type": "objekt"}', "no JSON Schema: .* at type"),
        ("3", "no JSON Schema: it is no object"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "schema.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"schema\.json: {words}"):
        read_json_schema(path)
    with pytest.raises(ConfigError, match=rf"command line: .*schema\.json: {words}"):
        load(None, ["--model", "m", "--task", "json", "--json_schema", str(path)])


@pytest.mark.parametrize(
    "text", ['{"type": "object"}', "true", '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "array"}']
)
def test_schemas_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text, encoding="utf-8")
    assert read_json_schema(path)
