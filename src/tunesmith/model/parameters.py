"""How many weights a model has, how many of them are trained, what tensors take, and how names are matched."""

from __future__ import annotations

from typing import Any

import torch


def trainable_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Number of trained weights and of all weights; packed 4-bit weights count as what they stand for, and weights that
    ZeRO stage 3 spread as if they were whole."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else int(torch.Size(state.shape).numel())
        count = getattr(parameter, "ds_numel", count)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's values, wherever they are; also of one on the meta device, which has none."""
    return int(tensor.numel() * tensor.element_size())


def whole_shape(weight: Any) -> torch.Size:
    """A weight's shape as the model computes with it: unpacked, and gathered from the processes it is spread over.

    Args:
        weight: a parameter, or the list of parametrizations that stands for one.
    """
    if isinstance(weight, torch.nn.Module):  # bitsandbytes' parametrization of a parameter that no layer holds
        states = (getattr(part, "quant_state", None) for part in weight.children())
        state = next((state for state in states if state is not None), None)
        unpacked: Any = weight.original if state is None else state
        return torch.Size(unpacked.shape)
    state = getattr(weight, "quant_state", None)
    shape = weight.shape if state is None else state.shape
    return torch.Size(getattr(weight, "ds_shape", shape))


def ends_in(name: str, end: str) -> bool:
    """Whether the last parts of a dotted name are those of ``end``, as PEFT matches names of layers."""
    return f".{name}".endswith(f".{end}")
