"""What autograd keeps for the backward pass, counted on the model's own code with tensors that hold no values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.model.internals import attention_of, takes_attention_setting
from tunesmith.model.parameters import tensor_bytes
from tunesmith.model.precision import Precision
from tunesmith.notices import notify

TRACED_LAYERS = 2
UNMASKED = "unmasked_sdpa"
"""Attention as the library computes it for a row without padding; whether a fake one has any cannot be seen."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The largest batch of a run.

    Attributes:
        rows: rows of its tensors.
        length: tokens of each row.
        labelled: positions of a row at which some row has a label.
    """

    rows: int
    length: int
    labelled: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a pass.

    Attributes:
        held: bytes between forward and backward pass.
        working: bytes that one layer needs on top in the latter.
        plain: whether the logits were seen to be what the head gives, without anything done to them afterwards.
    """

    held: int
    working: int
    plain: bool = False


def activations(model: Any, resolved: Resolved, precision: Precision, batch: BatchShape) -> Kept:
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = layers_of(base)
    number = len(layers)
    whole = resolved.config.adapter.use_lora and resolved.config.adapter.layers_to_transform is not None
    if not whole:
        del layers[TRACED_LAYERS:]
    try:
        by_layer, between, rest, plain = _traced(model, base, layers, precision, batch)
    except Exception as error:  # code whose shapes depend on values cannot run without values
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        notify(f"memory of activations: by a rule of thumb, the model's code cannot be traced ({reason})")
        by_layer, between, rest = _rule_of_thumb(base, precision, batch)
        plain = False
    layer = max(by_layer)
    mask = batch.rows * batch.length**2 if batch.rows > 1 else 0
    if resolved.config.training.gradient_checkpointing:
        return Kept(rest + mask + number * between, layer, plain)
    held = sum(by_layer) if whole else by_layer[0] + layer * (number - 1)
    return Kept(rest + mask + held, layer, plain)


def layers_of(base: PreTrainedModel) -> torch.nn.ModuleList:
    lists = [part for part in base.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    wanted = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    fitting = [part for part in lists if len(part) == wanted] or sorted(lists, key=len, reverse=True)
    if not fitting:
        raise ModelError(f"{type(base).__name__} has no list of layers, so its memory cannot be estimated")
    return fitting[0]


def _traced(
    model: Any, base: PreTrainedModel, layers: torch.nn.ModuleList, precision: Precision, batch: BatchShape
) -> tuple[list[int], int, int, bool]:
    """Bytes that autograd keeps of each layer, of the states between layers, and of everything else; and whether the
    logits are the head's own.

    ``saved_tensors_hooks`` see each tensor that is kept; parameters are not counted, and nothing is counted twice.
    """
    by_layer = [0] * len(layers)
    rest = between = 0
    current: int | None = None
    kept: list[torch.Tensor] = []  # alive until the end, so that no storage takes another's place

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal rest
        key = tensor.untyped_storage()._cdata
        if key not in seen:
            seen.add(key)
            kept.append(tensor)
            size = tensor.untyped_storage().nbytes()
            if current is None:
                rest += size
            else:
                by_layer[current] += size
        return tensor

    def enter(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal current
            current = index

        return hook

    def leave(_layer: Any, _arguments: Any, output: Any) -> None:
        nonlocal current, between
        current = None
        states = output[0] if isinstance(output, tuple) else output
        between = tensor_bytes(states)

    if batch.rows == 1 and attention_of(base) == "sdpa" and takes_attention_setting(base):
        AttentionInterface.register(UNMASKED, sdpa_attention_forward)
        AttentionMaskInterface.register(UNMASKED, lambda **_: None)
        base.set_attn_implementation(UNMASKED)
    handles: list[Any] = []
    with FakeTensorMode():
        _replace_by_fake(model)
        seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        for index, layer in enumerate(layers):
            handles += [layer.register_forward_pre_hook(enter(index)), layer.register_forward_hook(leave)]
        model.train()
        ids = torch.zeros(batch.rows, batch.length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast("cpu"):
            given: list[Any] = []
            head = base.get_output_embeddings()
            if head is not None:
                head.register_forward_hook(lambda _head, _inputs, output: given.append(output))
            logits = getattr(model(input_ids=ids, use_cache=False, **_one_logit(base)), "logits", None)
    return by_layer, between, rest, len(given) == 1 and given[0] is logits


def _one_logit(base: PreTrainedModel) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}


def _replace_by_fake(model: torch.nn.Module) -> None:
    """Put tensors with shapes and no contents in the place of those on the meta device."""
    made: dict[int, torch.nn.Parameter] = {}
    for part in model.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _rule_of_thumb(base: PreTrainedModel, precision: Precision, batch: BatchShape) -> tuple[list[int], int, int]:
    """34 hidden sizes a token and layer in 16 bits (Korthikanti et al. 2022), without those of attention's T x T."""
    config = base.config.get_text_config()
    tokens = batch.rows * batch.length
    width = precision.torch_dtype.itemsize
    experts = getattr(config, "num_experts_per_tok", None) or 1
    layer = tokens * config.hidden_size * 17 * width * max(1, experts)
    return [layer, layer], tokens * config.hidden_size * width, tokens * config.hidden_size * 4
