"""Records beside a model that somebody damaged: run.json, inference.json, generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RECORDS: list[tuple[str, str]] = [
    ("[]", "list"),
    ("null", "NoneType"),
    ("3", "int"),
    ("", "not valid JSON"),
    ('{"settings": {', "not valid JSON"),
    ("{}", "no settings"),
    ('{"settings": {}}', "no settings"),
    ('{"settings": []}', "no settings"),
    ('{"settings": {"adapter.lora_r": "many"}}', "lora_r"),
    ('{"settings": {"model.model_name_or_path": 3}}', "model_name_or_path"),
    ('{"settings": {"adapter.lora_r": 4}, "origins": []}', "origins"),
    ('{"settings": {"adapter.lora_r": 4}, "adapter": [1]}', "adapter"),
    ('{"settings": {"adapter.lora_r": 4}, "model": "x"}', "model is no object"),
    ("[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("text", "named"), RECORDS)
def test_record_that_cannot_be_used(text: str, named: str, adapter: Path, call) -> None:
    (adapter / "run.json").write_text(text)
    for verb, allowed in (("predict", {6}), ("evaluate", {6}), ("merge", {4, 6})):
        code, errors = call(verb, adapter)
        assert code in allowed, errors
        assert len(errors.splitlines()) == 1
        assert "run.json" in errors or str(adapter) in errors
        if verb != "merge":
            assert named in errors


@pytest.mark.parametrize(
    "text", ["[]", "{", "null", '{"version": "1"}', '{"version": 2}', '{"version": 1}', "[" * 100_000]
)
def test_contract_that_cannot_be_read(text: str, adapter: Path, call) -> None:
    (adapter / "inference.json").write_text(text)
    code, errors = call("predict", adapter)
    assert (code, "inference.json" in errors) == (4, True), errors


@pytest.mark.parametrize(
    "settings", [{"data.max_length": "many"}, {"data.format": 3}, {"data.unknown": 1}, {"data.template": "no place"}]
)
def test_contract_whose_settings_cannot_be_used(settings: dict[str, Any], adapter: Path, call) -> None:
    contract = {
        "version": 1, "how_to_use": "", "format": "prompt_completion", "columns": {}, "special_in_content": "split",
        "prompt": {"kind": "text", "query": "{prompt}", "before": "", "after": "", "begin_token_ids": [],
                   "cut_after": None},
        "stop_token_ids": [2], "stop_tokens": ["</s>"], "generation": {}, "max_length": 64, "settings": settings,
    }  # fmt: skip
    (adapter / "inference.json").write_text(json.dumps(contract))
    code, errors = call("predict", adapter)
    assert (code, "inference.json" in errors) == (4, True), errors
