"""Merges of adapters on experts that the base holds in one parameter, in 4 bits and as PEFT's own ``all-linear``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from merges import compared, plain_adapter, random_questions, run_folder
from tiny_models import VOCABULARY, write_tokenizer
from tunesmith.config.resolve import Resolved
from tunesmith.errors import NumericsError
from tunesmith.export import asked, proof, shards
from tunesmith.export.merge import merge
from tunesmith.export.update import plain
from tunesmith.model.adapters import base_of, load_adapter_strictly
from tunesmith.model.load import load_from_spec, model_spec
from tunesmith.model.packed import packed_weights
from tunesmith.model.quantize import dequantized, quantized_layers

Settings = Callable[..., Resolved]
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32}
    special = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
    config = Qwen3MoeConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes, **experts, **special)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return folder


def in_four_bits(settings: Settings, base: Path, folder: Path, **values: Any) -> Path:
    """A run on the base in 4 bits, with adapters on attention and experts."""
    return run_folder(
        settings,
        folder,
        model_name_or_path=str(base),
        load_in_4bit=True,
        target_modules=["q_proj", "v_proj"],
        target_parameters=list(EXPERTS),
        lora_dropout=0.0,
        **values,
    )


def folded_by_peft(run: Path) -> dict[str, torch.Tensor]:
    """Every weight of PEFT's own merge into what the packed bits stand for."""
    how = model_spec(run, device_map="cpu")
    trained = base_of(load_from_spec(how).model)
    held = {f"{plain(name)}.weight": dequantized(layer) for name, layer in quantized_layers(trained)}
    packed = {plain(name): value for name, value in packed_weights(trained)}
    assert any(name.endswith(EXPERTS) for name in packed)
    model = AutoModelForCausalLM.from_pretrained(how.base_folder(), dtype=how.weight_dtype).float()
    for name, value in (held | packed).items():
        model.get_parameter(name).data = value.float()
    return load_adapter_strictly(model, run, how.base_folder(), how.checksum).merge_and_unload().state_dict()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("values", [{}, {"bf16": True}, {"llm_int8_skip_modules": ["down_proj"]}], ids=str)
def test_experts_in_four_bits_are_merged_as_they_were_multiplied_with(
    values: dict[str, Any], large: bool, base: Path, settings: Settings, tmp_path: Path, monkeypatch: Any
) -> None:
    if large:
        monkeypatch.setattr(asked, "LARGE", 0)
    run = in_four_bits(settings, base, tmp_path / "run", **values)
    use, noise, ledger = compared(run, tmp_path / "work", random_questions())
    assert proof.problems_of(use, proof.allowed(noise, "float32")) == []
    assert ledger.folded == 2 * (2 + 4 * 3)  # the files hold each expert's three matrices
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "merged").state_dict()
    for name, tensor in folded_by_peft(run).items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=1e-7, msg=name)


def test_wrong_merge_of_experts_in_four_bits_is_refused(
    base: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = in_four_bits(settings, base, tmp_path / "run")
    right = shards.fold

    def spoilt(*arguments: Any, **keywords: Any) -> shards.Fold:
        fold = right(*arguments, **keywords)
        fold._sites["model.layers.1.mlp.experts.down_proj"].scaling["default"] *= 2
        return fold

    monkeypatch.setattr(shards, "fold", spoilt)
    with pytest.raises(NumericsError, match=r"layers.1.mlp.experts.down_proj is .* base \+ update"):
        merge(run, tmp_path / "merged", questions=None)


def test_adapter_that_peft_put_on_everything_is_merged(base: Path, tmp_path: Path) -> None:
    """PEFT turns the experts' names into those of their parameters, and gives these ranks of their own."""
    config = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    assert any("gate_up_proj" in name for name in model.peft_config["default"].rank_pattern)
    run = plain_adapter(model, tmp_path / "run", base)
    use, noise, ledger = compared(run, tmp_path / "work", random_questions())
    assert proof.problems_of(use, proof.allowed(noise, "float32")) == []
    assert ledger.folded == 2 * (4 + 1 + 4 * 3)
