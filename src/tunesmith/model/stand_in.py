"""What answers for a model where it is asked how its code behaves: itself, its first layers, or a small one like it.

What a layer hands on, and to which token, is decided by its code and not by its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from tunesmith.model.parts import beside_language, is_inside
from tunesmith.model.precision import Precision

LARGE = 10**9
"""Parameters from which a model is large."""
FEWEST_LAYERS = 2
"""Layers that stand for all of them at least."""


@contextmanager
def asked_of(
    model: torch.nn.Module, base: PreTrainedModel, precision: Precision, device: torch.device | None
) -> Iterator[tuple[torch.nn.Module, PreTrainedModel]]:
    """The model that answers for another, with and without adapters: itself where it can compute, a large one with its
    first layers alone; else a small one of the same architecture."""
    device = device or base.device
    if can_compute(base, device):
        with shortened(base):
            yield model, base
    else:
        twin = small_twin(base, precision, device if device.type != "meta" else torch.device("cpu"))
        yield twin, twin


def is_large(model: PreTrainedModel) -> bool:
    """Whether a pass through all of a model's layers is dear: minutes of a CPU."""
    return model.num_parameters() >= LARGE


@contextmanager
def shortened(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a large model has the fewest of its first layers that show every kind of layer; others stay as they are.

    Args:
        model: without adapters; its layers may carry some.
    """
    stack = stack_of(model) if is_large(model) else None
    if stack is None:
        yield
        return
    layers = list(stack)
    del stack[_num_layers_of_every_kind(model) :]
    try:
        yield
    finally:
        del stack[:]
        stack.extend(layers)


def can_compute(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether all weights are whole, in this process, and on that kind of device."""
    return not is_deepspeed_zero3_enabled() and all(
        parameter.device.type == device.type != "meta" for parameter in model.parameters()
    )


def small_twin(
    model: PreTrainedModel, precision: Precision, device: torch.device, *, at: int | None = None
) -> PreTrainedModel:
    """A model of the same class with random weights and the fewest layers that show every kind of layer.

    Random numbers that are drawn for it are not taken from anybody else's.

    Args:
        at: length at which its factors change, where they do.
    """
    config = copy.deepcopy(model.config)
    if at is not None:
        _thresholds(config.get_text_config(), at)
    _keep_layers(config.get_text_config(), _num_layers_of_every_kind(model))
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type), device:
        twin = type(model)(config)
    torch.nn.Module.to(twin, device, precision.torch_dtype)
    return twin


def _num_layers_of_every_kind(model: PreTrainedModel) -> int:
    """Length of the shortest beginning of the model's layers that has each kind which the whole has."""
    config = model.config.get_text_config()
    total = int(config.num_hidden_layers)
    stack, look_back = stack_of(model), getattr(config, "num_kv_shared_layers", None)
    if stack is None or look_back:  # some take keys and values of others, by their number
        return total
    per_layer = list(_lists_per_layer(config).values())
    kinds = [
        (*(type(part) for part in layer.modules()), *(repr(values[index]) for values in per_layer))
        for index, layer in enumerate(stack)
    ]
    return min(total, max(FEWEST_LAYERS, *(kinds.index(kind) + 1 for kind in kinds)))


def stack_of(model: PreTrainedModel) -> torch.nn.ModuleList | None:
    """The list of a model's layers; None where none is as long as the configuration says."""
    total = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    beside = beside_language(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == total > 0 and not is_inside(name, beside):
            return module
    return None


def _lists_per_layer(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """The settings that have one value for each layer (kinds of layers, windows ...)."""
    total = config.num_hidden_layers
    return {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == total}


def _keep_layers(config: PreTrainedConfig, number: int) -> None:
    for name, values in _lists_per_layer(config).items():
        setattr(config, name, values[:number])
    config.num_hidden_layers = number


def counts_length(model: PreTrainedModel) -> bool:
    """Whether the model's factors change beyond some length, which a short row does not show."""
    return bool(_thresholds(copy.deepcopy(model.config.get_text_config()), 1))


def _thresholds(config: PreTrainedConfig, length: int) -> list[str]:
    """Set every length beyond which a model's factors change to ``length``; returns the names of those it has."""
    found = []
    if getattr(config, "attn_temperature_tuning", None) and hasattr(config, "floor_scale"):
        config.floor_scale = length
        found.append("floor_scale")
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") in ("longrope", "dynamic") and part.get("original_max_position_embeddings"):
            part["original_max_position_embeddings"] = length
            found.append("original_max_position_embeddings")
    if found and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = length
    return found
