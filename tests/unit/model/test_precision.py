"""The dtype of a run is what somebody wrote, or is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.attention import choose_attention
from tunesmith.model.device import CPU
from tunesmith.model.internals import cpu_multiplies_bfloat16
from tunesmith.model.precision import SLOW_FROM, Precision, choose_precision, tell_of_slow_bfloat16, weights_dtype

Settings = Callable[..., Resolved]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({}, "float32"),
        ({"bf16": True}, "bfloat16"),
        ({"bf16": False}, "float32"),
        ({"bf16": False, "fp16": False}, "float32"),
    ],
)
def test_choice_on_the_cpu(values: dict[str, bool], dtype: str, settings: Settings) -> None:
    precision = choose_precision(settings(**values, written=tuple(values)), CPU)
    assert precision.dtype == dtype
    assert (precision.bf16, precision.fp16) == (dtype == "bfloat16", False)
    assert precision.reason


def test_float16_on_the_cpu_is_refused_when_written_and_replaced_aloud_when_default(
    settings: Settings, clean_notices: None
) -> None:
    with pytest.raises(ModelError, match="fp16") as caught:
        choose_precision(settings(fp16=True, written=("fp16",)), CPU)
    assert (caught.value.exit_code, caught.value.where) == (4, "config.py:3")
    assert notices.collected() == []
    assert choose_precision(settings(fp16=True), CPU).dtype == "float32"
    assert any("fp16" in text and "float32" in text for text in notices.collected())


def test_weights_are_float32_for_full_training_and_follow_the_arithmetic_for_adapters(settings: Settings) -> None:
    half = Precision("bfloat16", "test")
    assert weights_dtype(settings(use_lora=False), half) == torch.float32
    assert weights_dtype(settings(), half) == torch.bfloat16
    assert weights_dtype(settings(init_lora_weights="pissa"), half) == torch.float32
    assert weights_dtype(settings(dtype="float32"), half) == torch.float32
    assert weights_dtype(settings(use_lora=False, dtype="bfloat16"), half) == torch.bfloat16
    with pytest.raises(ModelError, match="float16"):
        weights_dtype(settings(use_lora=False, dtype="float16"), half)


def test_attention_is_chosen_aloud_and_refused_openly(settings: Settings, clean_notices: None) -> None:
    half = Precision("bfloat16", "test")
    assert choose_attention(settings(), half, CPU) == "sdpa"
    assert any(text.startswith("attention: sdpa") for text in notices.collected())
    assert choose_attention(settings(), half, CPU, supports_sdpa=False) == "eager"
    assert choose_attention(settings(attn_implementation="eager"), half, CPU) == "eager"
    wanted = {"attn_implementation": "flash_attention_2"}
    assert choose_attention(settings(**wanted), half, CPU) == "sdpa"
    with pytest.raises(ModelError, match="CUDA device"):
        choose_attention(settings(**wanted, written=("attn_implementation",)), half, CPU)


@pytest.mark.parametrize(
    ("has_units", "parameters", "dtype", "told"),
    [
        (False, SLOW_FROM, "bfloat16", True),
        (True, SLOW_FROM, "bfloat16", False),
        (False, SLOW_FROM - 1, "bfloat16", False),
        (False, SLOW_FROM, "float32", False),
    ],
)
def test_bfloat16_without_units_for_it_is_told_of_large_models(
    has_units: bool, parameters: int, dtype: Any, told: bool, clean_notices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu_multiplies_bfloat16() in (True, False)
    monkeypatch.setattr("tunesmith.model.precision.cpu_multiplies_bfloat16", lambda: has_units)
    tell_of_slow_bfloat16(Precision(dtype, "test"), CPU, parameters)
    assert [text.startswith("bf16: this cpu has no units") for text in notices.collected()] == [True] * told
