"""A model that computes layer by layer: the weights of one layer are in memory while it works, and no others.

They come from files, through the library's own conversions, and are multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tunesmith.export.checkpoint import Base, Rounding
from tunesmith.export.update import plain
from tunesmith.model.adapters import base_of
from tunesmith.model.headers import read_headers
from tunesmith.model.internals import leave_weights_alone, without_weights
from tunesmith.model.memory.activations import layers_of


def from_files(folder: Path, config: PreTrainedConfig, **keywords: Any) -> PreTrainedModel:
    """The model of a folder; nothing of it is read before it is asked something."""
    model = without_weights(config, buffers=True, dtype=torch.float32, **keywords)
    shape = without_weights(config, dtype=torch.float32, **keywords)
    layer_by_layer(model, Base(read_headers(folder), shape, str(folder), folder))
    model.eval()
    return model


def layer_by_layer(model: Any, base: Base, rounded: Rounding | None = None) -> None:
    """Have a model without weights take them from files, those of a layer when it works, all others now.

    Args:
        model: on the meta device but for its buffers, and for an adapter's weights where it carries one.
        base: where the weights are.
        rounded: what loading makes of a weight, by name.
    """
    whole = base_of(model)
    leave_weights_alone(whole)
    tied = whole.all_tied_weights_keys

    def value(name: str) -> torch.Tensor:
        name = plain(name)
        name = name if name in base.of_weights else tied.get(name, name)
        group = base.of_weights[name]
        found = base.converted(group, {one: base.read(one) for one in group.sources})[name]
        return found if rounded is None else rounded(name, found)

    names = {id(module): name for name, module in whole.named_modules()}
    layers = list(layers_of(whole))
    inside = {id(part) for layer in layers for part in layer.modules()}
    for module in whole.modules():
        if id(module) not in inside:
            _fill(module, names[id(module)], value)
    for layer in layers:
        weights = _Weights(names[id(layer)], value)
        layer.register_forward_pre_hook(weights.take)
        layer.register_forward_hook(weights.leave)


class _Weights:
    """The weights of a layer, which are there while it works."""

    def __init__(self, name: str, value: Callable[[str], torch.Tensor]) -> None:
        self.name = name
        self.value = value
        self.taken: list[tuple[torch.nn.Module, str]] = []

    def take(self, layer: torch.nn.Module, arguments: object) -> None:
        for name, module in layer.named_modules():
            place = f"{self.name}.{name}" if name else self.name
            self.taken += [(module, own) for own in _fill(module, place, self.value)]

    def leave(self, layer: torch.nn.Module, arguments: object, output: object) -> None:
        for module, name in self.taken:
            empty = torch.empty_like(getattr(module, name), device="meta")
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
        self.taken.clear()


def _fill(module: torch.nn.Module, place: str, value: Callable[[str], torch.Tensor]) -> list[str]:
    """Give a module its own weights; names of those that it lacked."""
    filled = []
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta:
            found = value(f"{place}.{name}" if place else name)
            found = found.float() if found.is_floating_point() else found
            rows = len(parameter) - len(found) if parameter.dim() else 0
            found = torch.cat([found, found.new_zeros(rows, *found.shape[1:])]) if rows > 0 else found  # of new tokens
            setattr(module, name, torch.nn.Parameter(found, requires_grad=False))
            filled.append(name)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name in module.state_dict():
            setattr(module, name, value(f"{place}.{name}" if place else name).to(buffer.dtype))
    return filled
