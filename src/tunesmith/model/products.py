"""Products of activations and weights, by the quicker one of the two libraries that torch has for them on a CPU.

torch multiplies float32 by MKL, which leaves AVX-512 to processors of Intel; oneDNN, for which torch has an operation
of its own, uses it wherever it is. On a Zen 4 core a layer of 384 by 1,024 numbers took a tenth less time, one of 4,096
by 4,096 a fifth (``docs/decisions``). Numbers differ by their rounding.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

LEAST_ROWS = 32
"""Of fewer rows than that, neither library is the quicker one for all sizes."""


@cache
def onednn_is_quicker() -> bool:
    """Whether this machine multiplies quicker by oneDNN: a processor of AMD with AVX-512."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() == "AuthenticAMD"


def _vendor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8", errors="replace").splitlines() if cpus.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, platform.processor())


def times(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x W^T + bias``, of which autograd sees nothing where oneDNN computes it.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out], or None.
    """
    if takes_onednn(x, weight):
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return made
    return F.linear(x, weight, bias)


def takes_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``times`` asks oneDNN for this product."""
    return (
        onednn_is_quicker()
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
    )


def multiply_quickly(model: torch.nn.Module) -> int:
    """Have the linear layers of a model train so; returns how many.

    Evaluation goes torch's way: oneDNN makes a kernel for each number of rows (half a millisecond, and a megabyte), and
    the rows of answers under way change too often. Layers whose forward somebody has replaced already stay as they are,
    and so do all where there is nothing to gain. Weights have to be whole where they are read, as they are not under
    FSDP and ZeRO-3.
    """
    if not onednn_is_quicker():
        return 0
    found = [one for one in model.modules() if type(one) is torch.nn.Linear and "forward" not in vars(one)]
    layer: Any
    for layer in found:
        layer.forward = ProductForward(layer)
    return len(found)


class ProductForward:
    """The forward of one linear layer; a class, so that the model can be copied."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or not torch.is_grad_enabled()
        if plain or not takes_onednn(x, weight):
            return F.linear(x, weight, bias)
        made: torch.Tensor = _Product.apply(x.flatten(0, -2), weight, bias)  # type: ignore[no-untyped-call]
        return made.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """``x W^T + bias`` of rows: a view made in here could not be changed in place, as some models' code does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's answer, [rows, out]; arguments as for ``times``, behind what backward reads."""
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return times(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, W and the bias."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            times(upstream, weight.t()) if of_x else None,
            upstream.t() @ x if of_weight else None,
            upstream.sum(0) if of_bias else None,
        )
