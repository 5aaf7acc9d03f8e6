"""Weights in 4 bits that no library layer holds: experts in one parameter, and linear layers of an architecture's own
class. They are packed one by one while they are loaded, and unpacked where they are read (bitsandbytes'
parametrization).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.model.blocks import read_across_rows
from tunesmith.model.roles import READ_PAST, Weight, weights_of

_ORDER = "names_before_packing"
"""Attribute of a module: its own parameters in the order in which they were before one of them was packed."""


def packable(weights: Sequence[Weight], model: PreTrainedModel, skip: Sequence[str] = ()) -> list[Weight]:
    """Weights that can be packed and that no quantized layer holds.

    Args:
        weights: those of the model.
        model: before anything on it is quantized, or after.
        skip: parts of names that stay as they are.
    """
    found = []
    for weight in weights:
        if any(part in weight.name for part in skip):
            continue
        experts = weight.role in ("experts", "shared_experts") and not weight.in_module
        own = weight.in_module and weight.role not in ("head", "embedding", "vector") and weight.obstacle is None
        if experts or (own and _own_class(model.get_submodule(weight.name.rpartition(".")[0]))):
            found.append(weight)
    return found


def kept_whole(weights: Sequence[Weight], model: PreTrainedModel, skip: Sequence[str] = ()) -> list[str]:
    """Names of layers that no quantization may touch: the head, those whose weight is read past the layer (packed bits
    mean nothing there), and those that the settings name.

    Args:
        weights: those of the model.
        model: before anything on it is quantized.
        skip: parts of names.
    """
    layers = [weight for weight in weights if weight.in_module]
    head = model.get_output_embeddings()
    found = [name for name, part in model.named_modules() if part is head and head is not None]
    found += [w.target for w in layers if w.obstacle == READ_PAST or any(part in w.name for part in skip)]
    return list(dict.fromkeys(found))


def wide(weights: Sequence[Weight], model: PreTrainedModel, skip: Sequence[str], *, eight: bool) -> list[Weight]:
    """Matrices beside embeddings and head that a quantization leaves as they are.

    Args:
        weights: those of the model.
        model: before anything on it is quantized.
        skip: parts of names that the settings leave out.
        eight: whether it is the one in 8 bits, which knows linear layers alone.
    """
    whole = set(kept_whole(weights, model, skip))
    packed = set() if eight else {weight.name for weight in packable(weights, model, skip)}
    plain = {name for name, part in model.named_modules() if type(part) in (torch.nn.Linear, Conv1D)} - whole
    return [
        weight
        for weight in weights
        if weight.role not in ("vector", "embedding", "head", "convolution")
        and weight.name not in packed
        and not (weight.name.endswith(".weight") and weight.name.rpartition(".")[0] in plain)
    ]


def _own_class(layer: torch.nn.Module) -> bool:
    """Whether a linear layer is of a class that bitsandbytes does not replace."""
    kind = type(layer)
    return kind not in (torch.nn.Linear, Conv1D) and not kind.__module__.startswith(("bitsandbytes", "tunesmith"))


@contextmanager
def packing() -> Iterator[None]:
    """Let transformers pack such weights while it loads a model in 4 bits, and leave alone what must stay whole.

    Its quantizers know linear layers alone, and it takes their classes from a table:
    https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/quantizers/auto.py
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    read_across_rows()
    known: dict[str, Any] = {name: AUTO_QUANTIZER_MAPPING[name] for name in ("bitsandbytes_4bit", "bitsandbytes_8bit")}
    eight: Any = type("Quantizer", (_LeavesWhole, known["bitsandbytes_8bit"]), {})
    AUTO_QUANTIZER_MAPPING.update({"bitsandbytes_4bit": _quantizer(), "bitsandbytes_8bit": eight})
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING.update(known)


class _LeavesWhole:
    """The part of a quantizer that says which layers it leaves as they are."""

    def get_modules_to_not_convert(self, model: Any, skip_modules: Any = None, *others: Any, **keywords: Any) -> Any:
        library: Any = super()
        found = library.get_modules_to_not_convert(model, skip_modules, *others, **keywords)
        return [*found, *kept_whole(weights_of(model), model)]


def _quantizer() -> Any:
    """transformers' 4-bit quantizer, which also packs bare parameters."""
    from bitsandbytes.nn import Params4bit
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    operation: Any = Bnb4bitQuantize
    quantizer_class: Any = Bnb4BitHfQuantizer

    class Quantize(operation):  # type: ignore[misc]
        def convert(self, input_dict: Any, **keywords: Any) -> Any:
            quantizer: Any = self.hf_quantizer
            if not quantizer.packed.issuperset(input_dict):
                return super().convert(input_dict, **keywords)
            config, done = quantizer.quantization_config, {}
            for name, value in input_dict.items():
                tensor = value[0] if isinstance(value, list) else value
                weight: Any = Params4bit(
                    tensor,
                    requires_grad=False,
                    compress_statistics=config.bnb_4bit_use_double_quant,
                    quant_type=config.bnb_4bit_quant_type,
                )
                done[name] = weight.to(tensor.device)
            return done

    class Quantizer(_LeavesWhole, quantizer_class):  # type: ignore[misc]
        packed: frozenset[str] = frozenset()

        def _process_model_before_weight_loading(self, model: Any, device_map: Any = None, **keywords: Any) -> None:
            super()._process_model_before_weight_loading(model, device_map, **keywords)
            skip = self.quantization_config.llm_int8_skip_modules or ()
            self.packed = frozenset(weight.name for weight in packable(weights_of(model), model, skip))

        def param_needs_quantization(self, model: Any, param_name: str, **keywords: Any) -> bool:
            return param_name in self.packed or super().param_needs_quantization(model, param_name, **keywords)

        def get_quantize_ops(self) -> Any:
            return Quantize(self)

        def _process_model_after_weight_loading(self, model: Any, **keywords: Any) -> Any:
            for name in sorted(self.packed):
                unpack_where_read(model, name)
            return super()._process_model_after_weight_loading(model, **keywords)

    return Quantizer


def unpack_where_read(model: torch.nn.Module, name: str) -> None:
    """Have a packed parameter give its numbers wherever the model reads it.

    Args:
        name: a parameter that holds packed bits; any other stays as it is.
    """
    from bitsandbytes.nn import parametrize

    place, _, own = name.rpartition(".")
    module = model.get_submodule(place)
    weight: Any = getattr(module, own)
    state = getattr(weight, "quant_state", None)
    if state is None:
        return
    module.__dict__.setdefault(_ORDER, tuple(module._parameters))
    bits: Any = torch.nn.Parameter(weight.data, requires_grad=False)
    bits.quant_state = state  # by which they are counted as what they stand for
    setattr(module, own, bits)
    unpacked = parametrize.Bnb4bitParametrization(state)
    torch.nn.utils.parametrize.register_parametrization(module, own, unpacked, unsafe=True)
    parametrize._register_parametrization_hooks(module, own)


def parameter_names(model: torch.nn.Module) -> Iterator[str]:
    """Names of all parameters in the order of the unpacked model, those that are unpacked where they are read under
    their own names.
    """
    seen = set()
    for place, module in model.named_modules():
        packed: Any = getattr(module, "parametrizations", {})
        for own in () if ".parametrizations" in f".{place}" else getattr(module, _ORDER, module._parameters):
            held = packed[own].original if own in packed else module._parameters.get(own)
            if held is not None and id(held) not in seen:
                seen.add(id(held))
                yield f"{place}.{own}" if place else own


def packed_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and numbers of every parameter that is unpacked where it is read."""
    from bitsandbytes.nn.parametrize import Bnb4bitParametrization

    for place, module in model.named_modules():
        packed: Any = getattr(module, "parametrizations", {})
        for own, steps in packed.items():
            first = next((step for step in steps if isinstance(step, Bnb4bitParametrization)), None)
            if first is not None:
                yield f"{place}.{own}", first(steps.original)


class _Placed(str):
    """A name that is sorted by its place in the model."""

    place: int

    def __lt__(self, other: str) -> bool:
        return self.place < getattr(other, "place", -1)


def placed(names: Collection[str], model: torch.nn.Module) -> list[str]:
    """Names of bare parameters as PEFT must be given them to wrap those of one module in the model's order.

    A file names an adapter by how deep it is wrapped, and PEFT wraps in the order of the alphabet where something is
    unpacked, in the model's order elsewhere; so an adapter that was trained in 4 bits would not fit the plain base.
    """
    found = []
    for place, name in enumerate(parameter_names(model)):
        if name in names:
            found.append(_Placed(name))
            found[-1].place = place
    return list[str](found)


def let_peft_adapt_packed_weights() -> None:
    """Have PEFT put its update on a parameter that is unpacked where it is read, and take it off again.

    It reads the parameter while torch keeps what is read, so that the model would be given the numbers without the
    update; and it looks for one of its two kinds of updates and leaves the other one on for ever:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py, ``ParamWrapper``
    """
    from peft.tuners.lora import layer

    wrapper_class: Any = layer.ParamWrapper
    if wrapper_class._remove_parametrizations is _take_last_off:
        return
    activate = wrapper_class._activate_lora

    @contextmanager
    def activate_and_forget(wrapper: Any, adapters: list[str]) -> Iterator[None]:
        with activate(wrapper, adapters):
            torch.nn.utils.parametrize._cache.pop((id(wrapper.get_base_layer()), wrapper.parameter_name), None)
            yield

    wrapper_class._activate_lora = activate_and_forget
    wrapper_class._remove_parametrizations = _take_last_off


def _take_last_off(wrapper: Any) -> None:
    layer, name = wrapper.get_base_layer(), wrapper.parameter_name
    steps = layer.parametrizations[name]
    if len(steps) == 1:
        torch.nn.utils.parametrize.remove_parametrizations(layer, name, leave_parametrized=False)
    else:
        del steps[len(steps) - 1]
