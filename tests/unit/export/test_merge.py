"""Merged models answer as what was trained; folding into other weights is measured and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError, StorageError
from tunesmith.export.merge import merge
from tunesmith.export.save import save_model
from tunesmith.model.load import load_model
from tunesmith.model.precision import choose_precision
from tunesmith.model.tokenizer import load_tokenizer

Settings = Callable[..., Resolved]


def random_prompts(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, vocabulary - 6, (40,), generator=generator).tolist() for _ in range(25)]


def run_folder(settings: Settings, folder: Path, **values: Any) -> Path:
    """A run whose adapter moved as far as a short training moves it."""
    resolved = settings(**values)
    precision = choose_precision(resolved)
    torch.manual_seed(0)
    model = load_model(resolved, precision)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
        elif parameter.requires_grad and "lora_" not in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    save_model(model, load_tokenizer(resolved.config.model), folder, resolved.config.model)
    record = {"settings": resolved.values(), "origins": resolved.origins}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        {"kind": "llama", "modules_to_save": ["lm_head"]},
        {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "bias": "all"},
        {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "load_in_4bit": True},
        {"load_in_4bit": True},
        {"load_in_4bit": True, "use_dora": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    ],
    ids=str,
)
def test_float32_merge_equals_what_was_trained(values: dict[str, Any], settings: Settings, tmp_path: Path) -> None:
    run = run_folder(settings, tmp_path / "run", **values)
    merged = merge(run, tmp_path / "merged", dtype="float32", prompts=random_prompts(96))
    assert merged.drift is not None
    assert merged.drift.num_positions == 1000
    assert merged.drift.max_difference <= 1e-5
    assert merged.drift.argmax_agreement >= 0.999


def test_int8_merge_is_as_near_as_its_arithmetic_allows(settings: Settings, tmp_path: Path) -> None:
    run = run_folder(settings, tmp_path / "run", load_in_8bit=True)
    drift = merge(run, tmp_path / "merged", dtype="float32", prompts=random_prompts(96)).drift
    assert drift is not None
    # int8 layers round their inputs as well, which no plain weight can do
    assert drift.max_difference <= 3e-2
    assert drift.argmax_agreement >= 0.95


def test_bfloat16_merge_rounds_and_says_how_far(settings: Settings, tmp_path: Path) -> None:
    run = run_folder(settings, tmp_path / "run", bf16=True)
    drift = merge(run, tmp_path / "merged", prompts=random_prompts(96)).drift
    assert drift is not None
    assert 0 < drift.max_difference < 0.05
    assert drift.argmax_agreement >= 0.95
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {parameter.dtype for parameter in weights.parameters()} == {torch.bfloat16}


def test_real_model_in_4_bits_merges_into_what_was_trained(
    settings: Settings, stories_model: Path, tmp_path: Path
) -> None:
    run = run_folder(settings, tmp_path / "run", model_name_or_path=str(stories_model), load_in_4bit=True)
    prompts = random_prompts(512)
    trained = merge(run, tmp_path / "trained", dtype="float32", prompts=prompts).drift
    original = merge(run, tmp_path / "original", dtype="float32", base="original", prompts=prompts).drift
    assert trained is not None
    assert original is not None
    assert trained.max_difference <= 1e-4  # logits of this model reach 20
    assert trained.argmax_agreement >= 0.999
    assert original.argmax_agreement < 0.95


def test_real_model_in_8_bits_is_nearer_to_what_was_trained(
    settings: Settings, stories_model: Path, tmp_path: Path
) -> None:
    run = run_folder(settings, tmp_path / "run", model_name_or_path=str(stories_model), load_in_8bit=True)
    prompts = random_prompts(512)
    trained = merge(run, tmp_path / "trained", dtype="float32", prompts=prompts).drift
    original = merge(run, tmp_path / "original", dtype="float32", base="original", prompts=prompts).drift
    assert trained is not None
    assert original is not None
    assert trained.mean_difference < original.mean_difference
    assert trained.argmax_agreement >= 0.95


def test_merged_model_is_a_plain_one(settings: Settings, tmp_path: Path) -> None:
    run = run_folder(settings, tmp_path / "run", load_in_4bit=True)
    merged = merge(run, tmp_path / "merged")
    assert merged.drift is None
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    names = {path.name for path in merged.path.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.startswith("adapter_") for name in names)


def test_refusals(settings: Settings, tmp_path: Path, models_folder: Path) -> None:
    with pytest.raises(ModelError, match="no adapter"):
        merge(models_folder / "llama", tmp_path / "merged")
    run = run_folder(settings, tmp_path / "run")
    with pytest.raises(StorageError, match="there already"):
        merge(run, run)
