"""An adapter's names as PEFT has to be told them: linear layers as layers, whatever names them, experts by their bare
parameters, beside which PEFT takes no dropout.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from transformers import PreTrainedModel

from tunesmith.model.internals import translate_names
from tunesmith.model.packed import let_peft_adapt_packed_weights, parameter_names, placed
from tunesmith.model.parameters import ends_in
from tunesmith.model.roles import is_linear
from tunesmith.notices import notify


def prepare_for_peft(model: PreTrainedModel, config: LoraConfig) -> tuple[float, tuple[Any, Any]]:
    """Name each weight as PEFT is to treat it here; returns the dropout and the names under which it is saved."""
    translate_names(model, config)
    dropout, named = config.lora_dropout, (config.target_modules, config.target_parameters)
    if not config.target_parameters:
        return dropout, named
    layers: set[str] = set()
    bare: set[str] = set()
    for name in parameter_names(model):
        if any(ends_in(name, target) for target in config.target_parameters):
            layer, _, own = name.rpartition(".")
            linear = own == "weight" and is_linear(model.get_submodule(layer))
            (layers if linear else bare).add(layer if linear else name)
    if layers and not isinstance(config.target_modules, str):
        config.target_modules = cast(Any, set(config.target_modules or ()) | layers)
        config.target_parameters = placed(bare, model) or None
    else:
        config.target_parameters = placed(bare | {f"{layer}.weight" for layer in layers}, model)
    config.lora_dropout = 0.0
    let_peft_adapt_packed_weights()
    return dropout, named


def drop_out(adapted: PeftModel, dropout: float, config: LoraConfig) -> None:
    """Give the layers the dropout that PEFT refuses beside bare parameters, and say where there is none."""
    if not dropout or config.lora_dropout == dropout:
        return
    reached = False
    for layer in adapted.modules():
        if isinstance(layer, ParamWrapper):
            reached = True
        elif isinstance(layer, LoraLayer) and "default" in layer.lora_dropout:
            layer.lora_dropout["default"] = torch.nn.Dropout(dropout)
    if reached:
        notify(f"lora_dropout {dropout:g} acts on layers; experts that lie in one parameter have none (PEFT)")
