"""The base in 4 or 8 bits: from settings to the library's configuration, and back to plain weights.

It loads nothing and trains nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.config.schema import QuantizationSection
from tunesmith.errors import ModelError
from tunesmith.model.headers import few
from tunesmith.model.internals import opener_of
from tunesmith.model.packed import packing, wide
from tunesmith.model.precision import Precision
from tunesmith.model.roles import Weight
from tunesmith.notices import notify

NF4_GAP = 0.16
"""Bound of what NF4 may be off by, relative to the largest number of a block: half of its widest gap is 0.152."""


def is_quantized(section: QuantizationSection) -> bool:
    """Whether the settings ask for a quantized base."""
    return section.load_in_4bit or section.load_in_8bit


DEQUANTIZED: dict[str, str] = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Formats of checkpoints that the library turns into 16 bits without the hardware they are for -> its settings."""


def check_not_quantized(config: PreTrainedConfig, name: str) -> None:
    """Refuse a base whose files are quantized already.

    Raises:
        ModelError: with what to do: a command that writes it in 16 bits, where the library can, or another model.
    """
    told: Any = getattr(config, "quantization_config", None)
    if not told:
        return
    values = told if isinstance(told, dict) else told.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method") or "bitsandbytes"))
    remedy = "name its unquantized original"
    if method in DEQUANTIZED:
        remedy = f"write it in 16 bits once and name that folder: {_dequantizing_command(config, name, method)}"
    elif method == "bitsandbytes":
        remedy += ", and quantize it in the run (load_in_4bit, load_in_8bit)"
    raise ModelError(f"was saved in a quantized format already ({method})", where=name, remedy=remedy)


def _dequantizing_command(config: PreTrainedConfig, name: str, method: str) -> str:
    opener, settings = opener_of(config).__name__, DEQUANTIZED[method]
    target = f"{Path(name).name}-bf16"
    return (
        f'python -c "from transformers import AutoTokenizer as T, {opener} as M, {settings} as Q; '
        f"T.from_pretrained('{name}').save_pretrained('{target}'); M.from_pretrained('{name}', dtype='bfloat16', "
        f"quantization_config=Q(dequantize=True)).save_pretrained('{target}')\""
    )


def quantization_config(
    section: QuantizationSection, precision: Precision, *, spread: bool = False
) -> BitsAndBytesConfig | None:
    """The quantization as bitsandbytes takes it (QLoRA, Dettmers et al. 2023; LLM.int8, 2022); None for none.

    4-bit layers multiply in ``bnb_4bit_compute_dtype``, which follows the run's precision unless it is set. Linear
    layers are quantized, the output head and everything that is not linear stay as they are.
    """
    skip = list(section.llm_int8_skip_modules) if section.llm_int8_skip_modules else None
    if section.load_in_8bit:
        _say_casts_once()
        notify("int8 layers round their inputs to 8 bits by way of float16, whatever the precision of the run")
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    if not section.load_in_4bit:
        return None
    wanted = section.bnb_4bit_compute_dtype
    compute = precision.torch_dtype if wanted == "auto" else getattr(torch, wanted)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=section.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute if spread else torch.uint8,
        llm_int8_skip_modules=skip,
    )


def nf4_error(device: str) -> str | None:
    """Why NF4 does not work on a device: a small tensor is brought into 4 bits and back; None where it does."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        weights = torch.linspace(-1, 1, 256, device=device)
        packed, state = quantize_4bit(weights, blocksize=64, quant_type="nf4")
        gap = float((dequantize_4bit(packed, state) - weights).abs().max())
    except Exception as error:  # what a library without kernels for a device raises
        return f"{type(error).__name__}: {error}"
    return None if gap < NF4_GAP else f"a number came back wrong by {gap:.3g}"


def check_promise(section: QuantizationSection, weights: Sequence[Weight], model: PreTrainedModel) -> int:
    """Say how much of a model its quantization leaves in 16 bits; returns the number of these weights.

    Args:
        section: the settings.
        weights: those of the model.
        model: before anything on it is quantized; weights are not needed.

    Raises:
        ModelError: more than half of the model would stay, and nobody named it.
    """
    skip = section.llm_int8_skip_modules or ()
    left = wide(weights, model, skip, eight=section.load_in_8bit)
    count, total = sum(weight.count for weight in left), sum(weight.count for weight in weights)
    unasked = [weight for weight in left if not any(part in weight.name for part in skip)]
    names = few(list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", weight.target) for weight in left)))
    said = f"{2 * count / 2**30:.2f} GiB of weights stay in 16 bits ({count / total:.0%} of the model: {names})"
    if sum(weight.count for weight in unasked) > total / 2:
        bits = "8" if section.load_in_8bit else "4"
        raise ModelError(
            f"load_in_{bits}bit would be no quantization: {said}",
            remedy="set load_in_4bit, which packs experts as well"
            if section.load_in_8bit
            else "switch the quantization off",
        )
    if count:
        notify(said)
    return count


def freeze_for_adapters(model: PreTrainedModel) -> None:
    """Freeze a quantized base; norms and other vectors are computed with in float32, and no matrix is blown up to it.

    PEFT's ``prepare_model_for_kbit_training`` holds everything that is not packed in float32: embeddings, head, and
    experts that stay in 16 bits.
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.is_floating_point() and parameter.dim() < 2 and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.float()


def _say_casts_once() -> None:
    """bitsandbytes logs at every product of every int8 layer that it casts: https://github.com/huggingface/peft/issues/2424

    Private: the name of its logger. ``quantization_config`` says it once instead.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_one_4bit_kernel(model: PreTrainedModel) -> None:
    """Keep 4-bit layers on one way of computing, in training and in evaluation.

    On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first evaluation: sizes that are no multiple of
    32 then fail, and the rest computes in another way than training did. What is packed is also moved wrongly:
    https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2078

    Raises:
        ModelError: bitsandbytes has no such switch any more.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            if not hasattr(module, "support_avx512bf16_for_cpu"):
                raise ModelError(
                    "this bitsandbytes cannot be kept to one 4-bit kernel on CPUs",
                    remedy="install a version that tunesmith was made for (pip install tunesmith)",
                )
            module.support_avx512bf16_for_cpu = False


def quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer of everything that multiplies with weights in 4 or 8 bits."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            yield name, module


def dequantized(layer: Any) -> torch.Tensor:
    """The weight of a quantized layer as it multiplies with it, in the unquantized layer's layout."""
    # Conv1D layers hold (in, out) and were transposed when they were quantized
    return _dequantized(layer).T if layer.source_cls is Conv1D else _dequantized(layer)


def use_dequantized_weights(
    model: torch.nn.Module, dtype: torch.dtype = torch.float32, computing: torch.dtype | None = None
) -> None:
    """Make every layer multiply with what its bits stand for, held in ``dtype``, inputs unrounded; for good.

    int8 layers otherwise round their inputs as well, and 4-bit layers compute in ``bnb_4bit_compute_dtype``. One layer
    is dequantized at a time.

    Args:
        computing: type of the arithmetic, where it is another one.
    """
    model.to(dtype)
    if computing is not None:
        model.to(computing)
    for _, layer in quantized_layers(model):
        layer.forward = _DequantizedForward(layer, dtype, computing or dtype)


class _DequantizedForward:
    """The forward pass of a quantized layer as that of a plain one; a class, so that the model can be copied."""

    def __init__(self, layer: Any, dtype: torch.dtype, computing: torch.dtype) -> None:
        self.layer = layer
        self.dtype = dtype
        self.computing = computing

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = _dequantized(self.layer).to(self.dtype).to(self.computing)
        return F.linear(inputs.to(self.computing), weight, self.layer.bias)


def rounded_as_loaded(
    skeleton: PreTrainedModel, config: BitsAndBytesConfig
) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """A function from a weight's name and value to what remains of it when the whole model is loaded quantized.

    The library's own quantizer works on one weight at a time; weights that it leaves alone come back as they are.

    Args:
        skeleton: the unquantized model on the meta device; it is changed.
    """
    from bitsandbytes.functional import dequantize_4bit
    from transformers.quantizers.auto import AutoHfQuantizer

    with packing():
        quantizer: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model=skeleton, device_map=None)
    quantize = quantizer.get_quantize_ops()

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
        if not quantizer.param_needs_quantization(skeleton, name):
            return weight
        if name in getattr(quantizer, "packed", ()):
            bits = quantize.convert({name: [weight]}, full_layer_name=name, model=skeleton)[name]
            return dequantize_4bit(bits.data, bits.quant_state)
        layer = skeleton.get_submodule(name.rpartition(".")[0])
        empty = layer.weight
        layer.weight = quantize.convert({name: [weight]}, full_layer_name=name, model=skeleton)[name]
        try:
            return dequantized(layer)
        finally:
            layer.weight = empty

    return rounded


def _dequantized(layer: Any) -> torch.Tensor:
    """``layer`` is bitsandbytes' ``Linear4bit`` or ``Linear8bitLt``."""
    from bitsandbytes.nn import Linear8bitLt
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    state = layer.state if isinstance(layer, Linear8bitLt) else None
    weight: torch.Tensor = dequantize_bnb_weight(layer.weight, state)
    return weight
