"""Adapters that PEFT makes and no run of ours: with biases of their own, and on convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Lfm2Config

from merges import compared, plain_adapter, random_questions
from tiny_models import VOCABULARY, write_tokenizer
from tunesmith.errors import ModelError
from tunesmith.export import proof
from tunesmith.export.merge import merge


def adapted(base: Path, run: Path, rank: int = 4, **settings: Any) -> Path:
    """An adapter of scale 2 on a base, moved from its start."""
    torch.manual_seed(1)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    return plain_adapter(model, run, base)


def test_biases_of_an_adapter_are_folded_into_those_of_the_base(models_folder: Path, tmp_path: Path) -> None:
    base = models_folder / "gpt2"
    run = adapted(base, tmp_path / "run", target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True)
    use, noise, ledger = compared(run, tmp_path / "work", random_questions())
    assert proof.problems_of(use, proof.allowed(noise, "float32")) == []
    assert ledger.folded == 2 * 2
    name = "transformer.h.1.attn.c_attn.bias"
    delta = load_file(tmp_path / "work" / "merged" / "model.safetensors")[name]
    delta = delta - load_file(base / "model.safetensors")[name]
    own = load_file(run / "adapter_model.safetensors")["base_model.model.transformer.h.1.attn.c_attn.lora_B.bias"]
    torch.testing.assert_close(delta, 2 * own)


def test_biases_that_the_base_has_no_place_for_are_refused(models_folder: Path, tmp_path: Path) -> None:
    run = adapted(models_folder / "mistral", tmp_path / "run", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(ModelError, match="changes 2 weights that the base's files do not hold"):
        merge(run, tmp_path / "merged", questions=None)


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lfm2")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48}
    special = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
    config = Lfm2Config(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes, **layers, **special)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return folder


def test_convolutions_of_single_channels_are_refused(convolutions: Path, tmp_path: Path) -> None:
    run = adapted(convolutions, tmp_path / "run", 32, target_modules=["conv.conv"])
    with pytest.raises(ModelError, match=r"layers\.0\.conv\.conv: .* 32 groups cannot be merged"):
        merge(run, tmp_path / "merged", questions=None)
