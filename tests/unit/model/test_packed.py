"""Weights in 4 bits that no library layer holds: packed while they load, unpacked where they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.zoo.models import build, write
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.device import here
from tunesmith.model.fresh import leave_out_silent, new_adapter
from tunesmith.model.load import load_base
from tunesmith.model.memory.shapes import skeleton, weight_bytes
from tunesmith.model.packed import packed_weights, packing
from tunesmith.model.parameters import trainable_parameters
from tunesmith.model.precision import Precision
from tunesmith.model.quantize import rounded_as_loaded

Settings = Callable[..., Resolved]
FLOAT32 = Precision("float32", "test")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("qwen2_moe", tmp_path_factory.mktemp("packed") / "model")


def test_experts_are_packed_and_learn(settings: Settings, experts: Path) -> None:
    resolved = settings(model_name_or_path=str(experts), load_in_4bit=True)
    model = load_base(resolved, FLOAT32, here(resolved))
    packed = dict(packed_weights(model))
    assert {name.rpartition(".")[2] for name in packed} == {"gate_up_proj", "down_proj"}
    original = build("qwen2_moe")
    for name, value in packed.items():
        weight = original.get_parameter(name)
        assert value.shape == weight.shape
        assert 0 < (value - weight).abs().max() < weight.abs().max() / 4
    assert trainable_parameters(model)[1] == trainable_parameters(original)[1]
    adapted = new_adapter(model, config := LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["experts"]))
    assert leave_out_silent(adapted, config, FLOAT32) is adapted
    ids = torch.arange(4, 20)[None]
    before = adapted(input_ids=ids).logits
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    assert not torch.allclose(before, adapted(input_ids=ids).logits)
    with adapted.disable_adapter():
        torch.testing.assert_close(before, adapted(input_ids=ids).logits)  # nothing of the update stayed behind


def test_a_merge_rounds_experts_as_loading_did(settings: Settings, experts: Path) -> None:
    resolved = settings(model_name_or_path=str(experts), load_in_4bit=True)
    model = load_base(resolved, FLOAT32, here(resolved))
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    with torch.device("meta"):
        rounded = rounded_as_loaded(build("qwen2_moe"), how)
    original = build("qwen2_moe")
    for name, value in packed_weights(model):
        torch.testing.assert_close(rounded(name, original.get_parameter(name).detach()), value, rtol=0, atol=0)


def test_the_plan_counts_packed_experts(settings: Settings, experts: Path) -> None:
    plain = skeleton(resolved := settings(model_name_or_path=str(experts), use_lora=False), FLOAT32)
    few = settings(model_name_or_path=str(experts), load_in_4bit=True)
    assert weight_bytes(skeleton(few, FLOAT32), few) < weight_bytes(plain, resolved) / 2


def test_eight_bits_that_would_be_none_are_refused(settings: Settings, tmp_path: Path) -> None:
    model = write("mixtral", tmp_path / "model")
    resolved = settings(model_name_or_path=str(model), load_in_8bit=True)
    with pytest.raises(ModelError, match=r"stay in 16 bits .* set load_in_4bit"):
        skeleton(resolved, FLOAT32)
    named = settings(model_name_or_path=str(model), load_in_8bit=True, llm_int8_skip_modules=["experts"])
    skeleton(named, FLOAT32)


@pytest.mark.parametrize("name", ["rwkv", "gemma3n_text", "mamba2"])
def test_weights_that_code_touches_stay_whole(name: str, settings: Settings, tmp_path: Path) -> None:
    model = write(name, tmp_path / "model")
    resolved = settings(model_name_or_path=str(model), load_in_4bit=True)
    loaded: Any = load_base(resolved, FLOAT32, here(resolved))
    ids = torch.arange(4, 20)[None]
    assert loaded.train()(input_ids=ids).logits.isfinite().all()
    assert loaded.eval()(input_ids=ids).logits.isfinite().all()


def test_the_library_s_table_is_as_it_was() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    before = dict(AUTO_QUANTIZER_MAPPING)
    with packing():
        assert before != AUTO_QUANTIZER_MAPPING
    assert before == AUTO_QUANTIZER_MAPPING
