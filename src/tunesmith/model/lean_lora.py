"""The forward of LoRA layers in training, with fewer passes over memory.

PEFT computes ``base(x) + (x A^T B^T) s`` in five operations, of which two only go through activations once more, and
autograd adds two gradients of ``x`` in a pass of its own. Here the update is added by the product that makes it (BLAS's
addmm), forward and backward (Hu et al. 2021, LoRA, has the formula). Numbers agree but for rounding, which is done once
less. Whatever is not plain LoRA, and evaluation, goes PEFT's way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners import lora
from torch.autograd.function import once_differentiable

from tunesmith.model.precision import linear_dtype
from tunesmith.model.products import ProductForward, times

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def add_updates_in_place(model: torch.nn.Module) -> int:
    """Have the LoRA layers of a model train this way; returns how many.

    Layers whose forward somebody has replaced already stay as they are. Weights have to be whole where they are read,
    as they are not under FSDP and ZeRO-3.
    """
    found = [layer for layer in model.modules() if type(layer) in _classes() and "forward" not in vars(layer)]
    for layer in found:
        layer.forward = LeanForward(layer)
    return len(found)


def _classes() -> Iterator[type]:
    yield lora.Linear
    with_bits = sys.modules.get("peft.tuners.lora.bnb")  # where PEFT has made layers over bitsandbytes'
    if with_bits is not None and hasattr(with_bits, "Linear4bit"):
        yield with_bits.Linear4bit


class LeanForward:
    """The forward of one layer; a class, so that the model can be copied."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        layer = self.layer
        adapter = None if arguments or keywords else _plain_adapter(layer, x)
        if adapter is None:
            made: torch.Tensor = type(layer).forward(layer, x, *arguments, **keywords)
            return made
        dtype = linear_dtype(x)
        base, dropout, scaling = layer.base_layer, layer.lora_dropout[adapter], layer.scaling[adapter]
        a, b = layer.lora_A[adapter].weight.to(dtype), layer.lora_B[adapter].weight.to(dtype)
        shape = (*x.shape[:-1], -1)
        drops = not isinstance(dropout, torch.nn.Identity) and dropout.p > 0
        if drops or not _is_frozen_linear(base):
            y, x = base(x), (dropout(x) if drops else x)
            with torch.autocast(x.device.type, enabled=False):
                made = _Update.apply(_rows(y), _rows(x).to(dtype), a, b, scaling)  # type: ignore[no-untyped-call]
            return made.view(shape)
        bias = None if base.bias is None else base.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            made = _Linear.apply(_rows(x).to(dtype), base.weight.to(dtype), bias, a, b, scaling)  # type: ignore[no-untyped-call]
        return made.view(shape)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[..., size] as [rows, size]. The functions below see rows alone: a view that is made in one of them could not be
    changed in place, as some models' own code does."""
    return x.flatten(0, -2)


def _plain_adapter(layer: Any, x: torch.Tensor) -> str | None:
    """The adapter of a layer that trains it in the plain way; None where there is anything else to be done."""
    if not layer.training or layer.disable_adapters or layer.merged or torch.compiler.is_compiling():
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    first, second = layer.lora_A[active[0]], layer.lora_B[active[0]]
    if not (_is_bare(first) and _is_bare(second)):
        return None
    if not torch.is_autocast_enabled(x.device.type) and not x.dtype == first.weight.dtype == second.weight.dtype:
        return None
    # what a layer in 4 bits gives has the type of its input
    return active[0] if isinstance(layer, lora.Linear) or x.dtype == linear_dtype(x) else None


def _is_bare(matrix: Any) -> bool:
    """Whether a module multiplies with a matrix and no more."""
    return type(matrix) is torch.nn.Linear and matrix.bias is None and not _is_watched(matrix)


def _is_frozen_linear(base: Any) -> bool:
    trained = any(parameter.requires_grad for parameter in base.parameters())
    return type(base) is torch.nn.Linear and not trained and not _is_watched(base)


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether something else happens when the module itself is called."""
    replaced = not isinstance(vars(module).get("forward"), ProductForward | None)
    return replaced or any(getattr(module, name) for name in HOOKS)


class _Linear(torch.autograd.Function):
    """``x W^T + bias + s x A^T B^T`` for a frozen W."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """The layer's answer, [rows, out].

        Args:
            ctx: what backward reads.
            x: [rows, in].
            weight: [out, in].
            bias: [out], or None.
            a: [rank, in].
            b: [out, rank].
            scaling: s.
        """
        low = times(x, a)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return times(x, weight, bias).addmm_(low, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, A and B."""
        x, weight, a, b, low = ctx.saved_tensors
        below, of_a, of_b = _of_update(upstream, x, b, low, ctx.scaling)
        of_x = times(upstream, weight.t()).addmm_(below, a) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_a, of_b, None


class _Update(torch.autograd.Function):
    """``y + s x A^T B^T`` for a y that some other layer has made."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """The layer's answer, [rows, out]; arguments as for ``_Linear``."""
        low = times(x, a)
        ctx.save_for_backward(x, a, b, low)
        ctx.scaling = scaling
        return torch.addmm(y, low, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of y, x, A and B."""
        x, a, b, low = ctx.saved_tensors
        below, of_a, of_b = _of_update(upstream, x, b, low, ctx.scaling)
        of_x = below @ a if ctx.needs_input_grad[1] else None
        return upstream, of_x, of_a, of_b, None


def _of_update(
    gradient: torch.Tensor, x: torch.Tensor, b: torch.Tensor, low: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``low``, A and B, from that of the answer."""
    below = times(gradient, b.t()).mul_(scaling)
    return below, below.t() @ x, (gradient.t() @ low).mul_(scaling)
