"""A merge that is not what was trained is refused, for dense models, mixtures of experts and hybrids alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from merges import plain_adapter
from tiny_models import VOCABULARY, write_tokenizer
from tunesmith.errors import ModelError, NumericsError, TunesmithError
from tunesmith.export import proof, shards
from tunesmith.export.asked import ask
from tunesmith.export.merge import merge, write_merged
from tunesmith.model.load import model_spec

SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
                         "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": SIZES,
    "qwen3_moe": SIZES | EXPERTS,
    "jamba": SIZES | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                      "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4},
}  # fmt: skip
MIXED = ("qwen3_moe", "jamba")


def make_run(kind: str, home: Path) -> Path:
    """A base and an adapter on its attention, and on its experts where it has some, far from where it began."""
    torch.manual_seed(3)
    base = home / "base"
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**KINDS[kind]))
    model.save_pretrained(base)
    write_tokenizer(base, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    parameters = ["experts.gate_up_proj", "experts.down_proj"] if kind in MIXED else None
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], target_parameters=parameters,
                        task_type="CAUSAL_LM", base_model_name_or_path=str(base))  # fmt: skip
    return plain_adapter(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config), home / "run", base)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("wrong")
    return {kind: make_run(kind, home / kind) for kind in KINDS}


def questions() -> proof.Questions:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, VOCABULARY, (12,), generator=generator).tolist() for _ in range(4)]
    return proof.Questions(prompts, list("abcd"), "random tokens", [2], max_new_tokens=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_right_merge_is_proven(kind: str, dtype: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    how = model_spec(runs[kind], device_map="cpu")
    asked = ask(how, "trained", dtype, questions(), tmp_path)
    (tmp_path / "merged").mkdir()
    ledger = write_merged(how, tmp_path / "merged", dtype=dtype, base="trained", max_shard_size="20KB")
    use = proof.difference(asked.reading, proof.read_merged(tmp_path / "merged", tmp_path))
    assert proof.problems_of(use, proof.allowed(asked.noise, dtype)) == []
    assert ledger.folded > 4 if kind in MIXED else ledger.folded == 4
    base = runs[kind].parent / "base"
    names = {name for file in (tmp_path / "merged").glob("*.safetensors") for name in load_file(file)}
    assert names == {name for file in base.glob("*.safetensors") for name in load_file(file)}


def layers(fold: shards.Fold) -> list[Any]:
    return [fold._sites[name] for name in sorted(fold._sites)]


def double_a_scale(fold: shards.Fold) -> None:
    layers(fold)[0].scaling["default"] *= 2


def leave_an_adapter_out(fold: shards.Fold) -> None:
    del fold._sites[min(fold._sites)]


def permute_a_tensor(fold: shards.Fold) -> None:
    factors = layers(fold)[-1].lora_B["default"].weight
    factors.data = factors.data[torch.randperm(len(factors), generator=torch.Generator().manual_seed(1))]


def swap_two_experts(fold: shards.Fold) -> None:
    layer = next(one for one in layers(fold) if getattr(one, "num_experts", 1) > 1)
    weight = layer.lora_A["default"].weight
    weight.data = weight.data.view(layer.num_experts, -1, weight.shape[1]).flip(0).reshape(weight.shape)


WRONG = [(kind, wrong) for kind in KINDS for wrong in (double_a_scale, leave_an_adapter_out, permute_a_tensor)]
WRONG += [(kind, swap_two_experts) for kind in MIXED]


@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_wrong_merge_is_refused(
    kind: str, wrong: Callable[[Any], None], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = shards.fold

    def spoilt(*arguments: Any, **keywords: Any) -> shards.Fold:
        fold = right(*arguments, **keywords)
        wrong(fold)
        return fold

    monkeypatch.setattr(shards, "fold", spoilt)
    with pytest.raises(NumericsError, match="base \\+ update"):
        merge(runs[kind], tmp_path / "merged", questions=None)
    assert not list(tmp_path.iterdir())


def test_file_that_changed_after_it_was_proven_is_refused(runs: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    from tunesmith.export import merge as merging

    def spoilt(how: Any, stage: Path, **order: Any) -> Any:
        ledger = write_merged(how, stage, **order)
        tensors = load_file(stage / "model.safetensors")
        experts = [name for name in tensors if "experts.0.down_proj" in name or "experts.1.down_proj" in name][:2]
        tensors[experts[0]], tensors[experts[1]] = tensors[experts[1]], tensors[experts[0]]
        save_file(tensors, stage / "model.safetensors", metadata={"format": "pt"})
        return ledger

    monkeypatch.setattr(merging, "write_merged", spoilt)
    monkeypatch.setattr(proof, "read_in_a_new_process", proof.read_merged)
    with pytest.raises(NumericsError, match="not those that were proven"):
        merge(runs["qwen3_moe"], tmp_path / "merged", questions=questions())
    assert not list(tmp_path.iterdir())


def test_one_block_with_an_adapter_for_each_use_is_refused(tmp_path: Path) -> None:
    """Zamba2 uses one block of attention in several places; an adapter for each of them fits into no plain model."""
    torch.manual_seed(3)
    sizes = SIZES | {"num_hidden_layers": 4, "layers_block_type": ["hybrid", "mamba", "hybrid", "mamba"],
                     "mamba_d_state": 8, "mamba_d_conv": 2, "mamba_expand": 1, "mamba_ngroups": 1, "n_mamba_heads": 2,
                     "num_mem_blocks": 1, "use_shared_attention_adapter": False, "adapter_rank": 2,
                     "attention_head_dim": 32, "chunk_size": 8}  # fmt: skip
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["zamba2"](**sizes)).save_pretrained(base)
    write_tokenizer(base, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    run = plain_adapter(get_peft_model(model, config), tmp_path / "run", base)
    with pytest.raises((ModelError, NumericsError), match="one weight") as caught:
        merge(run, tmp_path / "merged", questions=None)
    assert isinstance(caught.value, TunesmithError)
    assert not (tmp_path / "merged").exists()
