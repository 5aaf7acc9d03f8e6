"""An adapter that is loaded holds what its file holds, whatever PEFT makes of the names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.zoo.models import build
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from tunesmith.model.adapter_file import read_adapter
from tunesmith.model.adapters import load_adapter_strictly
from tunesmith.model.internals import names_that_peft_loses
from tunesmith.train.resuming import ResumingTrainer


@pytest.mark.parametrize("meta", [False, True])
def test_every_tensor_of_an_adapter_arrives(meta: bool, tmp_path: Path) -> None:
    """The library renames ``mlp.shared_expert.`` of Laguna's files, by a pattern that fits ``mlp.shared_experts``."""
    config = LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(build("laguna"), config).save_pretrained(tmp_path)
    base = build("laguna", seed=1)
    loaded = load_adapter_strictly(base.to("meta") if meta else base, tmp_path, None)
    held = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    tensors = read_adapter(tmp_path).tensors
    assert any("shared_experts" in name for name in tensors)
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())


def test_every_tensor_of_a_checkpoint_arrives(tmp_path: Path) -> None:
    """Trainer loads it by PEFT's own ``load_adapter``, which loses the same ones; the rest of the run would differ."""
    config = LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(build("laguna"), config).save_pretrained(tmp_path)
    trainer = object.__new__(ResumingTrainer)  # one that trains takes seconds, and only its model matters here
    trainer.model = get_peft_model(build("laguna", seed=1), config)
    trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
    trainer.model.load_adapter(tmp_path, "default", is_trainable=True)
    trainer._complete_adapter(str(tmp_path))
    held = get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    assert all(torch.equal(held[name], tensor) for name, tensor in read_adapter(tmp_path).tensors.items())


def test_what_plain_peft_would_lose_is_named_when_it_is_saved(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(build("laguna"), config).save_pretrained(tmp_path)
    tensors = read_adapter(tmp_path).tensors
    lost = names_that_peft_loses(get_peft_model(build("laguna"), config), tensors)
    assert lost == sorted(name for name in tensors if "shared_experts" in name)
    plain = PeftModel.from_pretrained(build("laguna", seed=1), tmp_path)
    held = get_peft_model_state_dict(plain, save_embedding_layers=False)
    assert lost == sorted(name for name, tensor in tensors.items() if not torch.equal(held[name], tensor))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "mixtral", "deepseek_v3"])
def test_of_other_models_plain_peft_loses_nothing(kind: str) -> None:
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(build(kind), config)
    assert names_that_peft_loses(adapted, get_peft_model_state_dict(adapted, save_embedding_layers=False)) == []
