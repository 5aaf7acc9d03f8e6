"""A large model is asked in its first layers, and is afterwards what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from peft import LoraConfig

from tunesmith.errors import ModelError
from tunesmith.model import stand_in
from tunesmith.model.fresh import leave_out_silent, new_adapter, targets_of
from tunesmith.model.head import inspect_head
from tunesmith.model.layout import settle_layout
from tunesmith.model.precision import Precision

FLOAT32 = Precision("float32", "test")
HERE = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
JAMBA: dict[str, Any] = SIZES | {
    "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 4, "expert_layer_offset": 3,
    "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 8, "use_mamba_kernels": False,
}  # fmt: skip


def llama() -> t.LlamaForCausalLM:
    torch.manual_seed(0)
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES))


def jamba() -> t.JambaForCausalLM:
    torch.manual_seed(0)
    return t.JambaForCausalLM(t.JambaConfig(**JAMBA))


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "LARGE", 0)


def passes(model: Any) -> list[int]:
    """A list to which each layer adds its number whenever it computes."""
    found: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: found.append(number))
    return found


def test_before_the_first_step_a_large_model_computes_in_its_first_layers_alone(all_are_large: None) -> None:
    model = llama()
    ids = torch.arange(5, 25)[None]
    before, names = model(ids).logits, list(model.state_dict())
    used = passes(model)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2)
    adapted = leave_out_silent(new_adapter(model, config), config, FLOAT32)
    assert settle_layout("auto", adapted, FLOAT32, HERE).batching == "prefix_tree"
    assert inspect_head(adapted, FLOAT32, HERE) is not None
    assert set(used) == {0, 1}
    assert len(targets_of(adapted)) == 7 * 8
    model = adapted.unload()
    assert list(model.state_dict()) == names
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(ids).logits, before)
    assert set(used) == set(range(8))


def test_every_kind_of_layer_is_asked(all_are_large: None) -> None:
    model = jamba()
    used = passes(model)
    with pytest.raises(ModelError, match="would see each other"):
        settle_layout("unpadded", model, FLOAT32, HERE)
    assert set(used) == {0, 1, 2, 3}
    assert len(model.model.layers) == 8


def test_what_is_silent_in_the_first_layers_is_so_in_all(all_are_large: None) -> None:
    model = llama()
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _layer, _inputs, output: output.detach())
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2)
    adapted: Any = leave_out_silent(new_adapter(model, config, written=False), config, FLOAT32)
    assert len(adapted.left_out) == 3 * 8
    assert targets_of(adapted) == {
        f"model.layers.{number}.self_attn.{part}_proj" for number in range(8) for part in "qkvo"
    }


def test_layers_that_look_back_to_others_are_all_asked(all_are_large: None) -> None:
    model = llama()
    model.config.num_kv_shared_layers = 2
    used = passes(model)
    settle_layout("unpadded", model, FLOAT32, HERE)
    assert set(used) == set(range(8))


def test_a_small_model_is_asked_whole() -> None:
    model = llama()
    used = passes(model)
    settle_layout("unpadded", model, FLOAT32, HERE)
    assert set(used) == set(range(8))


def test_layers_come_back_after_an_error(all_are_large: None) -> None:
    model = llama()

    def fail() -> None:
        with stand_in.shortened(model):
            assert len(model.model.layers) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(model.model.layers) == 8
