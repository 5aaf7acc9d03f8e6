"""How much memory a training run needs at its peak, from the model's configuration alone.

It loads no weights and trains nothing; a number here is an estimate, and its parts say where it comes from.

For one process on one device, with N trained and M all parameters:

- weights: bytes of every parameter in the type in which it is held. A 4-bit layer holds 0.5 bytes a weight and its
  scales: one float32 for 64 weights (0.0625 bytes each), or, doubly quantized, one byte for 64 weights and one float32
  for 256 of those (0.0159). An 8-bit layer holds 1 byte a weight and a float32 for every output. Beside layers in few
  bits, everything else and every adapter is held in float32.
- gradients: the bytes of the trained weights; twice with several processes that hold copies (ddp), for the buckets of
  their exchange.
- optimizer: states for each trained weight, in the weight's own type: AdamW 2, AdEMAMix 3, Lion, RMSprop and Adagrad 1,
  plain SGD and LOMO none. In 8 bits a state takes 1 byte and a float32 for 256 of them, tensors below 4096 elements
  stay in float32. Adafactor holds the sums of rows and columns of a matrix.
- activations: the bytes that autograd keeps for the backward pass. They are not guessed but counted: the model's own
  code runs on fake tensors (shapes without contents), with two of its layers, in the run's precision, and hooks see
  what is saved. The second layer stands for all others. With checkpointing only the states between layers are kept,
  and one layer at a time is computed again. A padded batch also holds its mask.
- loss: 12 bytes for each logit: the float32 copy, its log-softmax and the gradient. Logits are made for the positions
  that carry a label in some row.
- overhead: on CUDA the context and library workspaces (CUDA_CONTEXT) and a share for gaps between blocks (GAPS); on the
  CPU what this process has taken for its libraries. Quantized layers add their largest weight, unpacked.

The peak is that of the backward pass or that of the optimizer's step, whichever is greater: while activations are held,
gradients are there only when steps are accumulated; when the optimizer works, activations are gone.

Several processes P share (ZeRO, Rajbhandari et al. 2020; FSDP, Zhao et al. 2023), by strategy:

- ddp: nothing; each of them holds everything.
- zero1: optimizer states / P. zero2: gradients / P as well. zero3: weights / P as well.
- DeepSpeed holds weights and gradients in the run's arithmetic type (2 bytes in 16 bits), and beside the states a
  float32 copy of the trained weights: with AdamW in 16 bits 2 M + 2 N + (4 + 4 + 4) N / P for zero1.
- fsdp2: weights, gradients and states / P, each in its own type (AdamW on float32 weights: 16 N / P).
- what is whole again while it is used: with zero3 up to ZERO3_LIVE weights; with fsdp2 all that stands outside of the
  layers, and two layers (one computes, one arrives), in the arithmetic type.
- offloading moves states and gradients (``optimizer``) or weights (``param``) to the host or a disk.

Buckets of the exchange are left out where weights or gradients are spread: they are one hidden size squared.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy, at, chosen, named
from tunesmith.errors import ConfigError, ModelError
from tunesmith.model import source
from tunesmith.model.adapters import attach_adapter, check_targets, lora_config
from tunesmith.model.load import trainable_parameters, visible_index
from tunesmith.model.precision import Precision, uses_cuda, weights_dtype
from tunesmith.model.quantize import is_quantized
from tunesmith.model.whole import check_not_quantized
from tunesmith.notices import notify

GIB = 2**30
CUDA_CONTEXT = int(0.6 * GIB)
"""Context, kernels and workspaces of CUDA libraries; an assumption, the driver tells it only when it runs."""
GAPS = 0.05
"""Share of the tensors' bytes that the allocator cannot use; an assumption."""
BYTES_PER_LOGIT = 12
ZERO3_LIVE = 1_000_000_000
"""DeepSpeed's ``stage3_max_live_parameters`` where its file does not set it."""
SMALL_TENSOR = 4096
"""Elements below which 8-bit optimizers keep float32 states."""
TRACED_LAYERS = 2
UNMASKED = "unmasked_sdpa"
"""Attention as the library computes it for a row without padding; whether a fake one has any cannot be seen."""

STATES: tuple[tuple[str, int], ...] = (
    ("ademamix", 3),
    ("lomo", 0),
    ("schedule_free_sgd", 1),
    ("sgd", 0),
    ("lion", 1),
    ("rmsprop", 1),
    ("adagrad", 1),
    ("adam", 2),
)
"""States of an optimizer for each trained weight, by a part of its name; the first match counts."""

GPUS: dict[str, int] = {
    "t4": 16, "l4": 24, "a10": 24, "3090": 24, "4090": 24, "5090": 32, "v100": 32, "a6000": 48, "l40s": 48, "a100": 80,
    "h100": 80, "h200": 141, "b200": 180,
}  # fmt: skip
"""Memory of known devices in GiB; of those sold in several sizes the greatest."""


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
class Memory:
    """Bytes on one device, by what they are for; ``peak`` is less than their sum, for not all are there at once."""

    trainable: int
    """Number of trained parameters."""
    parameters: int
    """Number of all parameters."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    overhead: int
    peak: int
    trained_bytes: int
    """What the trained weights take in a file."""
    checkpoint: int
    """The same with the optimizer's states."""


class QuantizedLinear(torch.nn.Linear):
    """Stands for a layer with a frozen weight in 4 or 8 bits: it computes in one type and answers in its input's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = super().forward(input.to(self.weight.dtype))
        return output.to(input.dtype)


def skeleton(resolved: Resolved, precision: Precision) -> PreTrainedModel:
    """The run's model without any weights: every layer and adapter with its shape and type.

    Raises:
        ModelError: the model's configuration cannot be used, or the adapter does not fit it.
    """
    config = resolved.config
    section = config.model
    located = source.locate(section.model_name_or_path, section.revision, kind="tokenizer")
    keywords: dict[str, Any] = {"trust_remote_code": source.may_run_code(section, located)}
    if section.revision and not Path(located).is_dir():
        keywords["revision"] = section.revision
    try:
        model_config = AutoConfig.from_pretrained(located, **keywords)
        check_not_quantized(model_config, section.model_name_or_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                model_config,
                trust_remote_code=keywords["trust_remote_code"],
                dtype=weights_dtype(resolved, precision),
                attn_implementation="eager" if section.attn_implementation == "eager" else None,
            )
    except ModelError:
        raise
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the model cannot be built ({reason[:400]})", where=section.model_name_or_path) from error
    if is_quantized(config.quantization):
        _hold_in_few_bits(model, precision)
    if config.adapter.use_lora:
        adapter = lora_config(config.adapter)
        check_targets(model, adapter)
        adapter.init_lora_weights = True  # values do not matter here, and some kinds take them out of the weights
        model = attach_adapter(model, adapter)
    return model


def estimate(
    resolved: Resolved,
    precision: Precision,
    batch: BatchShape,
    *,
    cuda: bool,
    num_processes: int = 1,
    strategy: str | None = None,
) -> Memory:
    """The memory that one process needs on its device.

    Args:
        resolved: the run's configuration.
        precision: format of the arithmetic on that device.
        batch: the largest batch.
        cuda: whether the device is a CUDA device.
        num_processes: processes of the run, one device each.
        strategy: how they share the work (``fsdp2``, ``zero3``, ``zero3-offload-cpu`` ...); None for the run's own.

    Raises:
        ModelError: see ``skeleton``.
        ConfigError: there is no such strategy.
    """
    sharing = chosen(resolved) if strategy is None else named(strategy, nvme_path="nvme")
    training = resolved.config.training
    model = skeleton(resolved, precision)
    trainable, parameters = trainable_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepped = [torch.empty_like(part, dtype=torch.float32) for part in trained] if sharing.uses_deepspeed else trained
    if sharing.uses_deepspeed:
        model.to(precision.torch_dtype)
    states = sum(optimizer_bytes(training.optim, tensor) for tensor in stepped)
    step_work = sum(map(_size, stepped)) if cuda and training.optim == "adamw_torch" else max(map(_size, stepped))
    if sharing.uses_deepspeed:  # its float32 copy of the weights, and gradients for it
        states, step_work = states + sum(map(_size, stepped)), step_work + sum(map(_size, stepped))
    unpacked = max((_size(part.weight) for part in model.modules() if isinstance(part, QuantizedLinear)), default=0)
    whole = _Parts(_weight_bytes(model, resolved), sum(map(_size, trained)), states, step_work)
    parts = _shared(whole, model, precision, sharing, num_processes)
    kept = _activations(model, resolved, precision, batch)
    loss = batch.rows * batch.labelled * model.config.get_text_config().vocab_size * BYTES_PER_LOGIT
    accumulates = training.gradient_accumulation_steps > 1 or training.global_batch_size is not None
    backward = kept.held + max(loss, kept.working) + (parts.gradients if accumulates else 0)
    step = parts.gradients + max(parts.step_work, kept.working)
    tensors = parts.weights + parts.states + max(backward, step) + parts.gathered + unpacked
    overhead = CUDA_CONTEXT + int(GAPS * tensors) if cuda else _resident()
    return Memory(
        trainable=trainable,
        parameters=parameters,
        weights=parts.weights,
        gradients=parts.gradients,
        optimizer=parts.states,
        activations=kept.held + kept.working,
        loss=loss,
        overhead=overhead + parts.gathered + unpacked,
        peak=tensors + overhead,
        trained_bytes=sum(map(_size, trained)),
        checkpoint=sum(map(_size, trained)) + states,
    )


def remedies(resolved: Resolved, batch: BatchShape, fits: Callable[[Resolved, BatchShape], bool]) -> tuple[str, ...]:
    """Settings that make a run fit, the mildest first: one that does it alone, else several together; () when none do.

    Args:
        resolved: the run's configuration.
        batch: its largest batch.
        fits: whether a configuration with such a batch fits.
    """
    together, shape = resolved, batch
    texts: list[str] = []
    for change in (_checkpointing, _one_row, _four_bits, _small_states, _adapters, _shorter):
        alone = change(resolved, batch)
        if alone is None:
            continue
        if fits(alone[1], alone[2]):
            return (alone[0],)
        both = change(together, shape)
        if both is None:
            continue
        text, together, shape = both
        texts.append(text)
        if fits(together, shape):
            return tuple(texts)
    return ()


def device_memory(name: str) -> int:
    """Bytes of a device that is named by its size (``24GB``, ``80 GiB``) or its model (``RTX 3090``).

    Sellers' gigabytes of GPU memory are 2**30 bytes.

    Raises:
        ConfigError: neither a size nor a known model.
    """
    size = re.search(r"(\d+(?:\.\d+)?)\s*gi?b?$", name.strip().lower())
    if size:
        return int(float(size.group(1)) * GIB)
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    known = [gib for model, gib in GPUS.items() if model in words]
    if not known:
        raise ConfigError(
            f"--gpu {name!r} is no size and no device known here",
            where="command line",
            remedy=f"give its memory, for example 24GB; known are {', '.join(GPUS)}",
        )
    return known[0] * GIB


def here(resolved: Resolved) -> tuple[str, int]:
    """Name and usable bytes of the device on which the run would compute here."""
    if uses_cuda(resolved.config):
        index = visible_index(resolved.config.launch.gpu_id or 0)
        return torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)[1]
    return "cpu", _host_memory()


def precision_elsewhere(resolved: Resolved) -> Precision:
    """The precision on a CUDA device that has bfloat16, which need not be in this machine."""
    training = resolved.config.training
    if training.bf16 or (training.bf16 is None and training.fp16 is None):
        return Precision("bfloat16", "a CUDA device with bfloat16")
    return Precision("float16", "fp16 is on") if training.fp16 else Precision("float32", "bf16 and fp16 are off")


def optimizer_bytes(optim: str, parameter: torch.Tensor) -> int:
    """Bytes of the optimizer's states for one trained tensor, by transformers' name of the optimizer."""
    name = optim.lower()
    if "adafactor" in name:
        shape = parameter.shape
        if len(shape) < 2:
            return 4 * parameter.numel()
        return 4 * (parameter.numel() // shape[-1] + parameter.numel() // shape[-2])
    number = next((count for part, count in STATES if part in name), 2)
    if "8bit" in name:
        each = 4 * parameter.numel() if parameter.numel() < SMALL_TENSOR else int(parameter.numel() * (1 + 4 / 256))
        return number * each
    return number * _size(parameter)


# weights --------------------------------------------------------------------------------------------------------------


def _hold_in_few_bits(model: PreTrainedModel, precision: Precision) -> None:
    """Every linear layer but the output head, as the quantization does it; all the rest in float32 and frozen."""
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer is head or not isinstance(layer, torch.nn.Linear | Conv1D):
                continue
            inputs, outputs = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
            with torch.device("meta"):
                few = QuantizedLinear(inputs, outputs, bias=layer.bias is not None, dtype=precision.torch_dtype)
            setattr(parent, name, few)
    packed = {id(part.weight) for part in model.modules() if isinstance(part, QuantizedLinear)}
    for parameter in model.parameters():
        parameter.requires_grad = False
        if id(parameter) not in packed:
            parameter.data = parameter.data.float()
    model.is_quantized = True


def _weight_bytes(model: torch.nn.Module, resolved: Resolved) -> int:
    section = resolved.config.quantization
    packed = {id(part.weight): part.weight for part in model.modules() if isinstance(part, QuantizedLinear)}
    plain = sum(_size(parameter) for parameter in model.parameters() if id(parameter) not in packed)
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


def _size(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


# activations ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kept:
    """``held``: bytes between forward and backward pass; ``working``: what one layer needs on top in the latter."""

    held: int
    working: int


def _activations(model: Any, resolved: Resolved, precision: Precision, batch: BatchShape) -> _Kept:
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = _layers(base)
    number = len(layers)
    whole = resolved.config.adapter.use_lora and resolved.config.adapter.layers_to_transform is not None
    if not whole:
        del layers[TRACED_LAYERS:]
    try:
        by_layer, between, rest = _traced(model, base, layers, precision, batch)
    except Exception as error:  # code whose shapes depend on values cannot run without values
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        notify(f"memory of activations: by a rule of thumb, the model's code cannot be traced ({reason})")
        by_layer, between, rest = _rule_of_thumb(base, precision, batch)
    layer = max(by_layer)
    mask = batch.rows * batch.length**2 if batch.rows > 1 else 0
    if resolved.config.training.gradient_checkpointing:
        return _Kept(rest + mask + number * between, layer)
    held = sum(by_layer) if whole else by_layer[0] + layer * (number - 1)
    return _Kept(rest + mask + held, layer)


def _layers(base: PreTrainedModel) -> torch.nn.ModuleList:
    lists = [part for part in base.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    wanted = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    fitting = [part for part in lists if len(part) == wanted] or sorted(lists, key=len, reverse=True)
    if not fitting:
        raise ModelError(f"{type(base).__name__} has no list of layers, so its memory cannot be estimated")
    return fitting[0]


def _traced(
    model: Any, base: PreTrainedModel, layers: torch.nn.ModuleList, precision: Precision, batch: BatchShape
) -> tuple[list[int], int, int]:
    """Bytes that autograd keeps of each layer, of the states between layers, and of everything else.

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
        between = _size(states)

    if batch.rows == 1 and base.config._attn_implementation == "sdpa" and base._can_set_attn_implementation():
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
            model(input_ids=ids, use_cache=False, **_one_logit(base))
    return by_layer, between, rest


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


# processes and machine ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    """Bytes on one device; ``step_work``: what the optimizer's step needs; ``gathered``: weights made whole."""

    weights: int
    gradients: int
    states: int
    step_work: int
    gathered: int = 0


def _shared(parts: _Parts, model: Any, precision: Precision, strategy: Strategy, num_processes: int) -> _Parts:
    """What is left on one device of several that share the work; see the formulas at the top."""
    if strategy.name == "ddp":
        return replace(parts, gradients=parts.gradients * (2 if num_processes > 1 else 1))
    stage = 3 if strategy.name == "fsdp2" else int(strategy.name.removeprefix("zero"))
    if stage >= 1:
        parts = replace(parts, states=parts.states // num_processes, step_work=parts.step_work // num_processes)
    if stage >= 2:
        parts = replace(parts, gradients=parts.gradients // num_processes)
    if stage >= 3:
        gathered = _gathered(model, strategy, precision, parts.weights) if num_processes > 1 else 0
        parts = replace(parts, weights=parts.weights // num_processes, gathered=gathered)
    if strategy.offloads("optimizer"):
        parts = replace(parts, states=0, gradients=0, step_work=0)
    return replace(parts, weights=0) if strategy.offloads("param") else parts


def _gathered(model: Any, strategy: Strategy, precision: Precision, weights: int) -> int:
    """Bytes of weights that are whole at the same time although they are spread."""
    width = precision.torch_dtype.itemsize
    if strategy.uses_deepspeed:
        live = at(strategy.deepspeed, "zero_optimization.stage3_max_live_parameters")
        return min(weights, width * (ZERO3_LIVE if live in (None, "auto") else int(live)))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in _layers(base)]
    outside = trainable_parameters(model)[1] - sum(layers)
    return min(weights, width * (outside + 2 * max(layers)))


def _resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return GIB
    return pages * os.sysconf("SC_PAGE_SIZE")


def _host_memory() -> int:
    """Bytes that this process could use: what is free and its own, within the limit of its control group."""
    limits = list(_control_group_limits())
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = re.search(r"MemAvailable:\s+(\d+) kB", text)
        limits.append(int(free.group(1)) * 1024 + _resident() if free else 0)
    except OSError:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limit for limit in limits if limit)


def _control_group_limits() -> Iterator[int]:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            yield int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue


# remedies -------------------------------------------------------------------------------------------------------------

_Change = tuple[str, Resolved, BatchShape] | None


def _with(resolved: Resolved, section: str, **values: Any) -> Resolved:
    part = getattr(resolved.config, section).model_copy(update=values)
    return replace(resolved, config=resolved.config.model_copy(update={section: part}))


def _checkpointing(resolved: Resolved, batch: BatchShape) -> _Change:
    if resolved.config.training.gradient_checkpointing:
        return None
    return "gradient_checkpointing: true", _with(resolved, "training", gradient_checkpointing=True), batch


def _one_row(resolved: Resolved, batch: BatchShape) -> _Change:
    training = resolved.config.training
    rows = training.per_device_train_batch_size
    if rows == 1:
        return None
    steps = training.gradient_accumulation_steps * rows
    changed = _with(resolved, "training", per_device_train_batch_size=1, gradient_accumulation_steps=steps)
    text = f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {steps} (the same step)"
    smaller = replace(batch, rows=1) if batch.rows > 1 else replace(batch, length=batch.length // rows)
    return text, changed, replace(smaller, labelled=min(batch.labelled, smaller.length))


def _four_bits(resolved: Resolved, batch: BatchShape) -> _Change:
    if resolved.config.quantization.load_in_4bit or not resolved.config.adapter.use_lora:
        return None
    return "load_in_4bit: true", _with(resolved, "quantization", load_in_4bit=True, load_in_8bit=False), batch


def _small_states(resolved: Resolved, batch: BatchShape) -> _Change:
    if "adamw" not in resolved.config.training.optim or "8bit" in resolved.config.training.optim:
        return None
    return "optim: paged_adamw_8bit", _with(resolved, "training", optim="paged_adamw_8bit"), batch


def _adapters(resolved: Resolved, batch: BatchShape) -> _Change:
    if resolved.config.adapter.use_lora:
        return None
    changed = _with(_with(resolved, "adapter", use_lora=True), "quantization", load_in_4bit=True)
    return "use_lora: true with load_in_4bit: true", changed, batch


def _shorter(resolved: Resolved, batch: BatchShape) -> _Change:
    length = resolved.config.data.max_length // 2
    if length < 64 or batch.length <= length:
        return None
    text = f"max_length: {length} (longer rows are then cut or dropped, by too_long)"
    return (
        text,
        _with(resolved, "data", max_length=length),
        replace(batch, length=length, labelled=min(batch.labelled, length)),
    )
