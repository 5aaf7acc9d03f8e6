"""How many prompts are continued side by side where nobody has said it: what the model keeps of one decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM
from transformers.cache_utils import DynamicLayer

from tunesmith.config.schema import EvaluationSection
from tunesmith.evaluate import decoding as decodings
from tunesmith.evaluate.decoding import MOST_ROWS, ROWS, Decoding, rows_within
from tunesmith.evaluate.generate import generate

TOKENS = 12
"""Of each prompt with its answer."""


@pytest.fixture
def loaded(models_folder: Path) -> tuple[Any, Any]:
    folder = models_folder / "llama"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def kept_of_a_token(model: Any) -> int:
    """Bytes of keys and values, from the configuration."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize)


def rows_of(model: Any, tokenizer: Any, number: int, **settings: Any) -> list[int]:
    """Rows of every pass over prompts of 8 tokens whose answers have 4."""
    sizes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kw: sizes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    prompts = [[1, 5 + place % 80, *range(4, 10)] for place in range(number)]
    generate(model, tokenizer, prompts, Decoding(max_new_tokens=TOKENS - 8, stop_token_ids=[95], **settings))
    hook.remove()
    return [rows for rows, _ in sizes]


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_stay_within_their_bytes(
    rows: int, dtype: torch.dtype, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    model.to(dtype)
    monkeypatch.setattr(decodings, "KEPT_BYTES", (rows + 1) * TOKENS * kept_of_a_token(model) - 1)
    with torch.no_grad():
        assert rows_within(model, TOKENS) == rows
    assert max(rows_of(model, tokenizer, 10)) == rows
    assert max(rows_of(model, tokenizer, 10, batch_size=5)) == 5  # what somebody has set is honoured


def test_a_single_prompt_asks_nothing_and_a_row_is_always_taken(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr(decodings, "KEPT_BYTES", 1)
    assert rows_of(model, tokenizer, 1) == [1] * 4
    assert set(rows_of(model, tokenizer, 3)) == {1}


def test_a_small_model_has_no_more_than_pays(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert max(rows_of(model, tokenizer, MOST_ROWS + 8)) == MOST_ROWS


def test_what_keeps_a_state_has_a_fixed_number() -> None:
    model = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=96))
    assert rows_within(model, 10**9) == ROWS


def test_layers_that_keep_nothing_of_their_own_count_for_nothing(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models' layers take keys and values of an earlier one."""
    model, _ = loaded
    remembered = decodings.remembered
    monkeypatch.setattr(decodings, "KEPT_BYTES", 3 * TOKENS * kept_of_a_token(model))
    monkeypatch.setattr(decodings, "remembered", lambda *asked: [*remembered(*asked), DynamicLayer()])
    with torch.no_grad():
        assert rows_within(model, TOKENS) == 3


def test_the_setting_is_unset_by_default() -> None:
    assert Decoding.of(EvaluationSection(), seed=0).batch_size is None
    assert Decoding.of(EvaluationSection(generation_batch_size=3), seed=0).rows == 3
