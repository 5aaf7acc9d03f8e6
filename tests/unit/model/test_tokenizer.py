"""Tokenizers: their padding and end tokens, and ids that the model lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import ModelSection
from tunesmith.errors import ModelError
from tunesmith.model.tokenizer import check_vocabulary, load_tokenizer

Settings = Callable[..., Resolved]
MakeTokenizer = Callable[..., None]


def section(settings: Settings, folder: Path, **values: str) -> ModelSection:
    return settings(tokenizer_name_or_path=str(folder), **values).config.model


def test_end_token_pads_where_there_is_no_padding_token(settings: Settings, clean_notices: None) -> None:
    tokenizer = load_tokenizer(settings("llama").config.model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.padding_side == "right"
    assert any("</s>" in text and "pads" in text for text in notices.collected())
    assert len(tokenizer) == 94  # nothing was added


def test_own_padding_token_is_kept(
    settings: Settings, make_tokenizer: MakeTokenizer, tmp_path: Path, clean_notices: None
) -> None:
    make_tokenizer(tmp_path, eos_token="</s>", pad_token="<pad>")
    tokenizer = load_tokenizer(section(settings, tmp_path))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")
    assert notices.collected() == []


def test_padding_token_from_the_settings(settings: Settings, make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    make_tokenizer(tmp_path, eos_token="</s>")
    assert load_tokenizer(section(settings, tmp_path, pad_token="<pad>")).pad_token_id == 3


def test_no_end_token_is_refused_and_can_be_named(
    settings: Settings, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, bos_token="<s>")
    with pytest.raises(ModelError, match=r"model\.eos_token") as caught:
        load_tokenizer(section(settings, tmp_path))
    assert caught.value.exit_code == 4
    assert load_tokenizer(section(settings, tmp_path, eos_token="</s>")).eos_token_id == 2


@pytest.mark.parametrize("setting", ["eos_token", "pad_token"])
def test_unknown_token_is_refused(setting: str, settings: Settings) -> None:
    with pytest.raises(ModelError, match=f"{setting} '<none>'"):
        load_tokenizer(settings("llama", **{setting: "<none>"}).config.model)


def test_folder_without_tokenizer(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer_name_or_path"):
        load_tokenizer(section(settings, tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [("chat_template", 5), ("chat_template", {"a": 1}), ("model_max_length", "x"), ("model_max_length", {})],
)
def test_settings_of_wrong_kinds(
    name: str, value: object, settings: Settings, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, eos_token="</s>")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ModelError, match=name):
        load_tokenizer(section(settings, tmp_path))


def test_largest_id_needs_a_row(settings: Settings) -> None:
    tokenizer = load_tokenizer(settings("llama").config.model)
    largest = max(tokenizer.get_vocab().values())
    check_vocabulary(tokenizer, 96)
    check_vocabulary(tokenizer, largest + 1)
    with pytest.raises(ModelError, match=f"largest id is {largest}"):
        check_vocabulary(tokenizer, largest)
