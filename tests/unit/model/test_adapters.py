"""Adapters: every name must have a place, and every setting arrives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.adapters import adapter_tensors, attach_adapter, linear_module_names, lora_config, portable_tensors
from tunesmith.model.fresh import new_adapter

Settings = Callable[..., Resolved]


@pytest.fixture
def mistral(models_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(models_folder / "mistral")


def test_every_setting_reaches_peft(settings: Settings) -> None:
    section = settings(
        lora_r=4,
        lora_alpha=12,
        lora_dropout=0.25,
        target_modules=["q_proj"],
        exclude_modules=["k_proj"],
        rank_pattern={"layers.0.self_attn.q_proj": 2},
        alpha_pattern={"q_proj": 3.0},
        modules_to_save=["lm_head"],
        bias="lora_only",
        fan_in_fan_out=True,
        use_rslora=True,
        use_dora=True,
        init_lora_weights="gaussian",
        layers_pattern="layers",
        layers_to_transform=[0],
    ).config.adapter
    config = lora_config(section)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.25)
    assert (config.target_modules, config.modules_to_save) == ({"q_proj"}, ["lm_head"])
    assert config.exclude_modules == {"k_proj"}
    assert (config.rank_pattern, config.alpha_pattern) == ({"layers.0.self_attn.q_proj": 2}, {"q_proj": 3.0})
    assert (config.bias, config.fan_in_fan_out, config.use_rslora, config.use_dora) == ("lora_only", True, True, True)
    assert (config.init_lora_weights, config.layers_pattern, config.layers_to_transform) == ("gaussian", "layers", [0])
    assert (config.peft_type, config.task_type) == ("LORA", "CAUSAL_LM")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ["q_proj", "query"]}, r"target_modules: query is not .* q_proj, k_proj, v_proj, o_proj"),
        ({"target_modules": ["c_attn", "c_proj"]}, r"c_attn, c_proj are not in this model"),
        ({"modules_to_save": ["head"]}, "modules_to_save: head"),
        ({"target_modules": ["q_proj", "lm_head"]}, "output head"),
        ({"layers_to_transform": [1, 7]}, "no layer 7"),
        ({"target_modules": ["mlp"]}, "does not fit"),
    ],
)
def test_names_without_a_place_are_refused(
    values: dict[str, Any], message: str, mistral: Any, settings: Settings
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        attach_adapter(mistral, lora_config(settings(**values).config.adapter))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["loftq", "eva", "pisa", "pissa_niter_0"])
def test_initial_values_that_nobody_can_compute_are_refused(name: str, settings: Settings) -> None:
    with pytest.raises(ModelError, match=name):
        lora_config(settings(init_lora_weights=name).config.adapter)


def test_pissa_needs_weights_that_are_not_quantized(settings: Settings, models_folder: Path) -> None:
    from tunesmith.model.device import here
    from tunesmith.model.load import load_model
    from tunesmith.model.precision import choose_precision

    resolved = settings(init_lora_weights="pissa", load_in_4bit=True)
    with pytest.raises(ModelError, match="quantized"):
        load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved))


def test_all_linear_leaves_the_head_alone(mistral: Any, settings: Settings) -> None:
    names = linear_module_names(mistral)
    adapted = new_adapter(mistral, lora_config(settings(target_modules="all-linear").config.adapter))
    found = {name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names}
    assert found == set(names) - {"lm_head", "embed_tokens"}
    assert len(found) == 7


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_scale_of_the_update(rslora: bool, scale: float, mistral: Any, settings: Settings) -> None:
    section = settings(lora_r=4, lora_alpha=8, use_rslora=rslora).config.adapter
    adapted = attach_adapter(mistral, lora_config(section))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    expected = scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)


def test_an_expression_chooses_modules_and_patterns_their_ranks(mistral: Any, settings: Settings) -> None:
    section = settings(
        target_modules=r".*layers\.[01]\.self_attn\.[qv]_proj",
        exclude_modules=r".*layers\.1.*v_proj",
        lora_r=4,
        lora_alpha=8,
        rank_pattern={"layers.0.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 16},
    ).config.adapter
    adapted = attach_adapter(mistral, lora_config(section))
    layers = {name: part for name, part in adapted.named_modules() if hasattr(part, "lora_A")}
    found = {name[-24:].lstrip(".s"): (part.r["default"], part.scaling["default"]) for name, part in layers.items()}
    assert found == {
        "layers.0.self_attn.q_proj"[-24:].lstrip(".s"): (2, 4.0),
        "layers.0.self_attn.v_proj"[-24:].lstrip(".s"): (4, 4.0),
        "layers.1.self_attn.q_proj"[-24:].lstrip(".s"): (4, 2.0),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ".*nowhere.*"}, "target_modules: '.*nowhere.*' matches no module"),
        ({"target_modules": ".*(lm_head|q_proj)"}, "output head"),
        ({"exclude_modules": ["nowhere"]}, "exclude_modules: 'nowhere' matches no module"),
        ({"rank_pattern": {"nowhere": 3}}, "rank_pattern: 'nowhere' matches no module"),
        ({"alpha_pattern": {"nowhere": 3}}, "alpha_pattern: 'nowhere' matches no module"),
        ({"target_modules": "(q_proj"}, "no regular expression"),
        ({"rank_pattern": {"q_proj": 60_000}}, "rank 60000 is greater"),
    ],
)
def test_patterns_without_a_place_are_refused(
    mistral: Any, settings: Settings, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        attach_adapter(mistral, lora_config(settings(**values).config.adapter))


def test_an_excluded_head_is_no_target(mistral: Any, settings: Settings) -> None:
    section = settings(target_modules=".*(lm_head|q_proj)", exclude_modules=["lm_head"]).config.adapter
    attach_adapter(mistral, lora_config(section))


def test_a_portable_pissa_adapter_keeps_its_patterns(mistral: Any, settings: Settings) -> None:
    section = settings(
        target_modules=["q_proj", "v_proj"],
        init_lora_weights="pissa",
        lora_dropout=0.0,
        lora_r=4,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 16},
    ).config.adapter
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = mistral(ids).logits.detach().clone()
    adapted = attach_adapter(mistral, lora_config(section))
    tensors, portable = portable_tensors(adapted, adapter_tensors(adapted))
    assert (portable.r, portable.rank_pattern, portable.alpha_pattern) == (8, {"q_proj": 4}, {"v_proj": 32})
    assert {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight")} == {4, 8}
    assert torch.allclose(adapted(ids).logits, expected, atol=1e-4)
