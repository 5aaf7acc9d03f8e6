"""The adapter of a run on today's architectures: what it reaches, what it leaves out, and that plain PEFT opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.zoo.models import build
from peft import LoraConfig, PeftModel

from tunesmith.errors import ModelError
from tunesmith.model.adapters import adapter_tensors
from tunesmith.model.coverage import table
from tunesmith.model.fresh import coverage_of, leave_out_silent, new_adapter
from tunesmith.model.precision import Precision

FLOAT32 = Precision("float32", "test")
SELECTION = (
    "llama", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss",
    "llama4_text", "granitemoehybrid", "lfm2_moe", "nemotron_h", "jamba", "mamba2", "falcon_h1", "phi3", "gemma3n_text",
    "hunyuan_v1_moe", "gpt2",
)  # fmt: skip
"""Twenty kinds: dense, experts with and without shared ones, state-space and hybrid layers, other layers' classes."""


def settings(words: Any = "all-linear", **more: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=words, **more)


def row() -> torch.Tensor:
    return torch.randint(4, 90, (1, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SELECTION)
def test_all_linear_reaches_what_learns_and_no_router(name: str) -> None:
    adapted = new_adapter(build(name), config := settings())
    assert leave_out_silent(adapted, config, FLOAT32) is adapted  # every adapter gets a gradient
    rows = coverage_of(adapted)
    reached = {line["part"] for line in rows if line["adapted"]}
    there = {line["part"] for line in rows}
    assert reached <= {"attention", "mlp", "experts", "shared_experts", "other"}
    assert {"experts", "shared_experts"} & there <= reached
    assert sum(line["share"] for line in rows) == pytest.approx(1)
    assert "reached" in table(rows)[-1]


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", "nemotron_h", "phi3"])
def test_plain_peft_opens_it_and_answers_alike(name: str, tmp_path: Path) -> None:
    adapted = new_adapter(build(name), settings())
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.05)
    adapted.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build(name), str(tmp_path))
    assert adapter_tensors(plain).keys() == adapter_tensors(adapted).keys()
    with torch.no_grad():
        given = row()
        without = build(name).eval()(input_ids=given).logits
        ours, theirs = adapted.eval()(input_ids=given).logits, plain.eval()(input_ids=given).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, without, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "words", "modules", "parameters"),
    [
        ("qwen2_moe", ["experts"], set(), {"down_proj", "gate_up_proj"}),
        ("qwen2_moe", ["router"], {"shared_expert_gate"}, {"gate.weight"}),
        ("granitemoehybrid", ["shared_experts"], {"input_linear", "output_linear"}, None),
        ("phi3", ["attention"], {"qkv_proj", "o_proj"}, None),
        ("deepseek_v3", ["q_a_proj", "down_proj"], {"q_a_proj"}, {"down_proj", "down_proj.weight"}),
        ("mixtral", ["q_proj", "w1", "w3"], {"q_proj"}, {"gate_up_proj"}),
    ],
)
def test_words_become_names(name: str, words: list[str], modules: set[str], parameters: set[str] | None) -> None:
    new_adapter(build(name), config := settings(words))
    assert set(config.target_modules or ()) == modules
    assert (set(config.target_parameters) if config.target_parameters else None) == parameters


def test_a_default_follows_the_architecture_and_a_written_list_does_not() -> None:
    usual = ["q_proj", "k_proj", "v_proj", "o_proj"]
    new_adapter(build("deepseek_v3"), config := settings(usual), written=False)
    assert set(config.target_modules or ()) == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    new_adapter(build("qwen3_next"), config := settings(usual), written=False)
    assert config.target_modules == set(usual)
    with pytest.raises(ModelError, match="not in this model"):
        new_adapter(build("deepseek_v3"), settings(usual))


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("llama", ["experts"], "experts reaches no weight of this model"),
        ("mixtral", ["w1"], "holds? w1 and w3 in one parameter"),
        ("jamba", ["dt_proj", "gate_proj", "up_proj"], "reads the weight past the layer"),
    ],
)
def test_words_that_mean_nothing_are_refused(name: str, words: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        new_adapter(build(name), settings(words))


def test_parts_and_layers_are_left_out_where_that_is_asked_for() -> None:
    wanted = settings(["all-linear"], exclude_modules=["experts"], layers_to_transform=[1])
    adapted = new_adapter(build("qwen2_moe"), wanted)
    targets = [*adapted.base_model.targeted_module_names, *adapted.base_model.targeted_parameter_names]
    assert targets
    assert all(".1." in target and "experts" not in target.split(".") for target in targets)


def test_an_adapter_without_a_gradient_is_left_out_or_refused() -> None:
    def silenced() -> Any:
        model = build("llama")
        layer = model.model.layers[1].mlp.up_proj
        layer.forward = lambda inputs: torch.nn.functional.linear(inputs, layer.weight).detach()
        return model

    adapted = new_adapter(model := silenced(), config := settings())
    silent = adapted.base_model.model.model.layers[1].mlp.up_proj
    silent.forward = lambda inputs: silent.base_layer(inputs)
    kept = leave_out_silent(adapted, config, FLOAT32)
    assert "model.layers.1.mlp.up_proj" not in kept.base_model.targeted_module_names
    assert "model.layers.0.mlp.up_proj" in kept.base_model.targeted_module_names
    assert any(line["reason"] == "its adapter gets no gradient" for line in coverage_of(kept))
    del model
    written = new_adapter(build("llama"), config := settings(["up_proj", "q_proj"]))
    silent_too = written.base_model.model.model.layers[1].mlp.up_proj
    silent_too.forward = lambda inputs: silent_too.base_layer(inputs)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj get no gradient"):
        leave_out_silent(written, config, FLOAT32)


def test_dropout_reaches_layers_beside_experts() -> None:
    adapted = new_adapter(build("qwen2_moe"), config := settings(lora_dropout=0.25))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_dropout["default"].p == 0.25
    assert config.lora_dropout == 0.0  # PEFT would refuse to open it otherwise
