"""The embedded base model as files: loads by the usual classes, reads and writes any text, and knows no task."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.assets import embedded_model
from tunesmith.synthetic import nli

FOLDER = embedded_model("nano-mistral")
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]")


def test_special_tokens_have_the_documented_ids_and_stand_alone() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(6))
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (1, 2, 3)
    assert TOKENIZER.encode("[INST][/INST]</s>", add_special_tokens=False) == [4, 5, 2]


def test_encoding_adds_one_bos_and_no_eos() -> None:
    ids = TOKENIZER.encode("the dog sleeps")
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert 2 not in ids


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_unchanged(text: str) -> None:
    if any(token in text for token in SPECIAL):
        return
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text
    assert 0 not in ids


def test_digits_stand_alone() -> None:
    assert TOKENIZER.tokenize("2048") == ["2", "0", "4", "8"]


def test_chat_template_is_mistrals() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert rendered == "<s>[INST] Be brief.\n\none [/INST] two</s>[INST] three [/INST]"
    longer = TOKENIZER.apply_chat_template([*messages, {"role": "assistant", "content": "four"}], tokenize=False)
    assert longer == rendered + " four</s>"
    for wrong in ([{"role": "assistant", "content": "x"}], messages[1:2] * 2):
        with pytest.raises(Exception, match="alternate"):
            TOKENIZER.apply_chat_template(wrong, tokenize=False)


def test_nli_examples_are_short_in_tokens() -> None:
    rows, _ = nli.make_nli(200, 0)
    lengths = [
        len(TOKENIZER.encode(f"{row['premise']} {row['hypothesis']} {json.dumps(row['thought_process'])}"))
        for row in rows
    ]
    assert max(lengths) <= 90


def test_the_model_is_small_mistral_in_bf16_and_fits_nf4_blocks() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert type(model).__name__ == "MistralForCausalLM"
    assert 1_000_000 < model.num_parameters() < 3_000_000
    assert {str(p.dtype) for p in model.parameters()} == {"torch.bfloat16"}
    assert model.config.max_position_embeddings == 1024
    assert model.config.vocab_size == len(TOKENIZER)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    assert len(matrices) == 28
    assert all(size % 64 == 0 for p in matrices for size in p.shape)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 3)


def test_files_are_small_and_described() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("make_nano_mistral.py", "parameters", "pretrain", "held-out"):
        assert word in card
