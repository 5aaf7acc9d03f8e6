"""The run's model without weights: every layer and adapter with its shape and type, and the bytes they will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import QuantizationSection
from tunesmith.errors import ModelError
from tunesmith.model import source
from tunesmith.model.adapters import lora_config
from tunesmith.model.fresh import new_adapter
from tunesmith.model.internals import without_weights
from tunesmith.model.packed import kept_whole, packable
from tunesmith.model.parameters import tensor_bytes
from tunesmith.model.parts import freeze_beside_language
from tunesmith.model.precision import Precision, weights_dtype
from tunesmith.model.quantize import check_not_quantized, check_promise, is_quantized
from tunesmith.model.roles import weights_of


class QuantizedLinear(torch.nn.Linear):
    """Stands for a layer with a frozen weight in 4 or 8 bits: it computes in one type and answers in its input's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = super().forward(input.to(self.weight.dtype))
        return output.to(input.dtype)


def skeleton(resolved: Resolved, precision: Precision, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The run's model without any weights: every layer and adapter with its shape and type.

    Args:
        resolved: the run's configuration.
        precision: format of the arithmetic.
        dtype: format of unquantized weights, where it is not that of training.

    Raises:
        ModelError: the model's configuration cannot be used, or the adapter does not fit it.
    """
    config = resolved.config
    model = bare_skeleton(resolved, dtype or weights_dtype(resolved, precision))
    freeze_beside_language(model)
    if is_quantized(config.quantization):
        _hold_in_few_bits(model, precision, config.quantization)
    if config.adapter.use_lora:
        adapter = lora_config(config.adapter)
        written = resolved.explicit("adapter.target_modules")
        return cast(PreTrainedModel, new_adapter(model, adapter, written=written, values=False))
    return model


def bare_skeleton(resolved: Resolved, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The run's model as it is built, without weights, adapter or quantization.

    Args:
        resolved: the run's configuration.
        dtype: format of its weights.

    Raises:
        ModelError: the model's configuration cannot be used.
    """
    section = resolved.config.model
    located = source.locate(section.model_name_or_path, section.revision, kind="tokenizer")
    keywords: dict[str, Any] = {"trust_remote_code": source.may_run_code(section, located)}
    if section.revision and not Path(located).is_dir():
        keywords["revision"] = section.revision
    try:
        model_config = AutoConfig.from_pretrained(located, **keywords)
        check_not_quantized(model_config, section.model_name_or_path)
        model = without_weights(
            model_config,
            trust_remote_code=keywords["trust_remote_code"],
            dtype=dtype,
            attn_implementation="eager" if section.attn_implementation == "eager" else None,
        )
    except ModelError:
        raise
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the model cannot be built ({reason[:400]})", where=section.model_name_or_path) from error
    return model


def _hold_in_few_bits(model: Any, precision: Precision, section: QuantizationSection) -> None:
    """What the quantization packs, as it packs it; all the rest as it is and frozen, vectors in float32."""
    weights = weights_of(model)
    check_promise(section, weights, model)
    skip = section.llm_int8_skip_modules or ()
    whole = set(kept_whole(weights, model, skip))
    bare = set() if section.load_in_8bit else {weight.name for weight in packable(weights, model, skip)}
    for place, layer in list(model.named_modules()):
        if place in whole or type(layer) not in (torch.nn.Linear, Conv1D):
            continue
        inputs, outputs = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        with torch.device("meta"):
            few = QuantizedLinear(inputs, outputs, bias=layer.bias is not None, dtype=precision.torch_dtype)
        model.set_submodule(place, few)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = False
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()
        elif name in bare:
            parameter.packed_bits = True
    model.is_quantized = True


def weight_bytes(model: torch.nn.Module, resolved: Resolved) -> int:
    """Bytes of all weights of a skeleton, packed ones with their scales."""
    section = resolved.config.quantization
    packed = {id(part.weight): part.weight for part in model.modules() if isinstance(part, QuantizedLinear)}
    packed |= {id(weight): weight for weight in model.parameters() if getattr(weight, "packed_bits", False)}
    plain = sum(tensor_bytes(parameter) for parameter in model.parameters() if id(parameter) not in packed)
    return plain + sum(
        packed_bytes(weight, eight=section.load_in_8bit, double=section.bnb_4bit_use_double_quant)
        for weight in packed.values()
    )


def packed_bytes(weight: torch.Tensor, *, eight: bool, double: bool) -> int:
    """Bytes of a weight (outputs, inputs) in 8 or 4 bits with its scales; ``double``: the 4-bit scales in 8 bits."""
    count = weight.numel()
    if eight:
        return count + 4 * int(weight.shape[0])
    scales = -(-count // 64)
    return -(-count // 2) + (scales + 4 * -(-scales // 256) if double else 4 * scales)
