"""In which dtype a run computes and holds its weights, with the reason for it.

Nothing is switched in silence: what somebody wrote is honoured or refused; what was only a default may change, aloud.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.device import Device
from tunesmith.model.internals import cpu_multiplies_bfloat16
from tunesmith.notices import notify

SLOW_FROM = 10**8
"""Parameters from which a slow format is worth a word."""

DTypeName = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, slots=True)
class Precision:
    """The format of the run's arithmetic.

    Attributes:
        dtype: format in which products are computed.
        reason: why it is this one, in words.
    """

    dtype: DTypeName
    reason: str

    @property
    def bf16(self) -> bool:
        """The trainer's flag of the same name."""
        return self.dtype == "bfloat16"

    @property
    def fp16(self) -> bool:
        """The trainer's flag of the same name."""
        return self.dtype == "float16"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as torch's type."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def autocast(self, device: torch.device | str) -> AbstractContextManager[object]:
        """The context in which the trainer runs forward passes; answers are to be generated in the same one."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(device).type, dtype=self.torch_dtype)


def linear_dtype(inputs: torch.Tensor) -> torch.dtype:
    """The type in which a plain linear layer would multiply with these inputs, as things stand."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype


def choose_precision(resolved: Resolved, device: Device) -> Precision:
    """The format of the run's arithmetic.

    ``bf16`` and ``fp16`` that somebody wrote are honoured or refused. Where neither is set, CUDA devices compute in
    bfloat16 (in float16, when they lack it), the cpu and Apple's device in float32.

    Raises:
        ModelError: the device cannot do what somebody wrote.
    """
    training = resolved.config.training
    if training.bf16:
        return _bfloat16(resolved, device)
    if training.fp16:
        return _float16(resolved, device)
    if training.bf16 is False or training.fp16 is False:
        return Precision("float32", "bf16 and fp16 are switched off")
    if device.kind != "cuda":
        return Precision("float32", f"the run computes on the {device.kind}")
    if device.bf16:
        return Precision("bfloat16", "the device computes in bfloat16")
    return Precision("float16", "the device has no bfloat16")


def possible_here(trained: Precision, device: Device) -> Precision:
    """The precision of a finished run, or float32 where the device lacks it, which is said."""
    if (trained.fp16 and device.kind != "cuda") or (trained.bf16 and not device.bf16):
        notify(f"the run was trained in {trained.dtype}, which this device lacks: its model computes in float32 here")
        return Precision("float32", f"{trained.dtype} was trained in, and this device lacks it")
    return trained


def tell_of_slow_bfloat16(precision: Precision, device: Device, parameters: int) -> None:
    """Say so where bfloat16 costs a cpu many times what float32 does, and the model is of a size that shows it.

    Without units for it torch multiplies by gradients number by number: 10.7 s in place of 0.09 s were measured for a
    layer of 4,096 by 14,336 on an AVX2 cpu.

    Args:
        parameters: of the model.
    """
    if precision.bf16 and device.kind == "cpu" and parameters >= SLOW_FROM and not cpu_multiplies_bfloat16():
        notify(
            "bf16: this cpu has no units for bfloat16, and a step can take a hundred times as long as in float32; "
            "bf16 false computes in float32"
        )


def weights_dtype(resolved: Resolved, precision: Precision) -> torch.dtype:
    """The format in which unquantized weights are loaded.

    ``model.dtype`` when it is set. Otherwise float32 for full fine-tuning (the optimizer needs its precision) and for
    adapters that start from the weights' own directions (PiSSA, OLoRA: what is taken out of the base must be exact);
    else the format of the arithmetic.

    Raises:
        ModelError: full fine-tuning with weights in float16, whose gradients cannot be rescaled.
    """
    config = resolved.config
    full = not config.adapter.use_lora
    if config.model.dtype == "auto":
        exact = full or mutates_base(config.adapter.init_lora_weights)
        return torch.float32 if exact else precision.torch_dtype
    if full and config.model.dtype == "float16":
        raise ModelError(
            "full fine-tuning cannot train weights held in float16",
            where=resolved.origins["model.dtype"],
            remedy="leave model.dtype out (float32 weights, arithmetic by fp16), or set bfloat16",
        )
    if full and config.model.dtype == "bfloat16":
        notify("full fine-tuning of bfloat16 weights: steps smaller than their rounding are lost (float32 keeps them)")
    dtype: torch.dtype = getattr(torch, config.model.dtype)
    return dtype


def mutates_base(init_lora_weights: str | bool) -> bool:
    """Whether an adapter's initial values are taken out of the base weights, which are then changed."""
    return isinstance(init_lora_weights, str) and init_lora_weights.startswith(("pissa", "olora"))


def align_types(model: torch.nn.Module) -> int:
    """Let a model whose parts have different types compute outside of autocast as well.

    A layer in float32 among layers in 16 bits (an output head that is trained whole, a norm) meets inputs of the other
    type, and torch refuses to multiply them; the trainer's autocast hides that, an evaluation outside of it meets it.
    Each plain linear layer and LayerNorm then takes its input in its own type, and embeddings hand on the type of the
    rest. Hooks do that and ``forward`` stays what it is: a wrapper that hid its ``**kwargs`` would make the trainer
    average accumulated losses wrongly. Inside autocast nothing changes.

    Returns:
        The number of layers that got a hook; 0 where all parts have one type.
    """
    from transformers.pytorch_utils import Conv1D

    parts = [part for name, part in model.named_modules() if ".lora_" not in name]  # adapters convert by themselves
    types = {
        parameter.dtype
        for part in parts
        for parameter in part.parameters(recurse=False)
        if parameter.is_floating_point()
    }
    if len(types) < 2:
        return 0
    narrow = min(types, key=lambda dtype: torch.finfo(dtype).bits)
    strict = [part for part in parts if type(part) in (torch.nn.Linear, torch.nn.LayerNorm, Conv1D)]
    embeddings = [part for part in parts if type(part) is torch.nn.Embedding and part.weight.dtype != narrow]
    for layer in strict:
        layer.register_forward_pre_hook(_input_in_weight_type)
    for layer in embeddings:
        layer.register_forward_hook(_OutputInType(narrow))
    return len(strict) + len(embeddings)


def _input_in_weight_type(
    layer: torch.nn.Module, arguments: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...] | None:
    inputs = arguments[0]
    weight = layer.weight
    if inputs.dtype == weight.dtype or torch.is_autocast_enabled(inputs.device.type):
        return None
    return (inputs.to(weight.dtype), *arguments[1:])  # type: ignore[arg-type]


class _OutputInType:
    """Forward hook that casts an output outside of autocast; a class, so that the model can still be copied."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, layer: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        return output if torch.is_autocast_enabled(output.device.type) else output.to(self.dtype)


def _bfloat16(resolved: Resolved, device: Device) -> Precision:
    if device.bf16:
        return Precision("bfloat16", f"bf16 is on ({resolved.origins['training.bf16']})")
    cuda = device.kind == "cuda"
    if resolved.explicit("training.bf16"):
        raise ModelError(
            f"bf16 is on, and this {'CUDA' if cuda else device.kind} device has no bfloat16",
            where=resolved.origins["training.bf16"],
            remedy="set fp16, or switch bf16 off" if cuda else "switch bf16 off",
        )
    dtype: DTypeName = "float16" if cuda else "float32"
    notify(f"bf16 is this dialect's default, but the device has no bfloat16: the run computes in {dtype}")
    return Precision(dtype, "the device has no bfloat16")


def _float16(resolved: Resolved, device: Device) -> Precision:
    if device.kind == "cuda":
        return Precision("float16", f"fp16 is on ({resolved.origins['training.fp16']})")
    if resolved.explicit("training.fp16"):
        raise ModelError(
            "fp16 is on, and training in float16 needs a CUDA device",
            where=resolved.origins["training.fp16"],
            remedy="switch fp16 off (float32), or set bf16",
        )
    notify(f"fp16 is this dialect's default, but the run computes on the {device.kind}: it computes in float32")
    return Precision("float32", f"fp16 is only a default, and the run computes on the {device.kind}")
