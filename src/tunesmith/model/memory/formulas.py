"""How much memory a training run needs at its peak, from the model's configuration alone.

It loads no weights and trains nothing; a number here is an estimate, and its parts say where it comes from.

For one process on one device, with N trained and M all parameters:

- weights: bytes of every parameter in the type in which it is held. A 4-bit layer holds 0.5 bytes a weight and its
  scales: one float32 for 64 weights (0.0625 bytes each), or, doubly quantized, one byte for 64 weights and one float32
  for 256 of those (0.0159). An 8-bit layer holds 1 byte a weight and a float32 for every output. Beside layers in few
  bits, norms and every adapter are held in float32, embeddings and head in the type in which they are loaded.
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
  that carry a label in some row; with a frozen head no more of them at once than the one-pass loss makes (see
  ``model/head.py``), and beside them the states of these positions and their gradients. Evaluation makes them all,
  when neither activations nor gradients are there.
- overhead: on CUDA the context and library workspaces (CUDA_CONTEXT) and a share for gaps between blocks (GAPS); on the
  CPU what this process has taken for its libraries. Quantized layers add their largest weight, unpacked.

The peak is that of the backward pass, of the optimizer's step or of an evaluation, whichever is greatest: while
activations are held, gradients are there only when steps are accumulated; when the optimizer works, activations are
gone.

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

from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.config.evaluation import evaluates
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy, at, chosen, named
from tunesmith.model.adapters import base_of
from tunesmith.model.head import CHUNK_LOGITS, is_frozen
from tunesmith.model.memory.activations import BatchShape, Kept, activations, layers_of
from tunesmith.model.memory.gpus import GIB, resident
from tunesmith.model.memory.shapes import QuantizedLinear, skeleton, weight_bytes
from tunesmith.model.parameters import tensor_bytes, trainable_parameters
from tunesmith.model.precision import Precision

CUDA_CONTEXT = int(0.6 * GIB)
"""Context, kernels and workspaces of CUDA libraries; an assumption, the driver tells it only when it runs."""
GAPS = 0.05
"""Share of the tensors' bytes that the allocator cannot use; an assumption."""
BYTES_PER_LOGIT = 12
ZERO3_LIVE = 1_000_000_000
"""DeepSpeed's ``stage3_max_live_parameters`` where its file does not set it."""
SMALL_TENSOR = 4096
"""Elements below which 8-bit optimizers keep float32 states."""
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
    loaded: int
    """All weights, as they are loaded before anything is shared."""
    offloaded: int
    """What lies in the host's memory instead."""
    largest: int = 0
    """The largest weight in float32, which is there a few times while it is merged."""


def estimate(
    resolved: Resolved,
    precision: Precision,
    batch: BatchShape,
    *,
    cuda: bool,
    num_processes: int = 1,
    strategy: str | None = None,
    spread: bool = False,
) -> Memory:
    """The memory that one process needs on its device.

    Args:
        resolved: the run's configuration.
        precision: format of the arithmetic on that device.
        batch: the largest batch.
        cuda: whether the device is a CUDA device.
        num_processes: processes of the run, one device each.
        strategy: how they share the work (``fsdp2``, ``zero3``, ``zero3-offload-cpu`` ...); None for the run's own.
        spread: whether the model is laid over several devices.

    Raises:
        ModelError: see ``skeleton``.
        ConfigError: there is no such strategy.
    """
    sharing = chosen(resolved) if strategy is None else named(strategy, nvme_path="nvme")
    model = skeleton(resolved, precision)
    loaded = weight_bytes(model, resolved)
    trainable, parameters = trainable_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if sharing.uses_deepspeed:
        model.to(precision.torch_dtype)  # type: ignore[arg-type]  # the stub of a decorated method
    states, step_work = _stepped(trained, resolved.config.training.optim, sharing, cuda=cuda)
    layers = [tensor_bytes(part.weight) for part in model.modules() if isinstance(part, QuantizedLinear)]
    unpacked = max(layers, default=0)
    whole = _Parts(weight_bytes(model, resolved), sum(map(tensor_bytes, trained)), states, step_work)
    parts = _shared(whole, model, precision, sharing, num_processes)
    kept = activations(model, resolved, precision, batch)
    one_pass = kept.plain and not (sharing.shards_parameters or spread)
    loss = _loss_bytes(model, resolved, precision, batch, in_one_pass=one_pass, cuda=cuda)
    work = _at_most(resolved, parts, kept, loss, _evaluation_bytes(model, resolved, batch))
    tensors = parts.weights + parts.states + work + parts.gathered + unpacked
    overhead = CUDA_CONTEXT + int(GAPS * tensors) if cuda else resident()
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
        trained_bytes=sum(map(tensor_bytes, trained)),
        checkpoint=sum(map(tensor_bytes, trained)) + states,
        loaded=loaded,
        offloaded=parts.offloaded,
        largest=4 * max(parameter.numel() for parameter in model.parameters()),
    )


def _at_most(resolved: Resolved, parts: _Parts, kept: Kept, loss: int, evaluation: int) -> int:
    """Bytes beside weights and states while most is there: in the backward pass, a step or an evaluation."""
    training = resolved.config.training
    accumulates = training.gradient_accumulation_steps > 1 or training.global_batch_size is not None
    backward = kept.held + max(loss, kept.working) + (parts.gradients if accumulates else 0)
    step = parts.gradients + max(parts.step_work, kept.working)
    return max(backward, step, evaluation + kept.working)


def _loss_bytes(
    model: Any, resolved: Resolved, precision: Precision, batch: BatchShape, *, in_one_pass: bool, cuda: bool
) -> int:
    """Bytes of logits, with what is computed of them.

    Args:
        in_one_pass: whether a frozen head may be asked in chunks (``head.asking``); then each position has its state
            and its gradient, before and after it is weighed; a head of another type is copied.
        cuda: where probabilities do not take the room of the scores.
    """
    config, data = model.config.get_text_config(), resolved.config.data
    head: Any = base_of(model).get_output_embeddings()
    positions, computes = batch.rows * batch.labelled, precision.torch_dtype
    logits = positions * int(config.vocab_size)
    frozen = is_frozen(head) and not (data.new_tokens or data.new_special_tokens)
    if not (in_one_pass and frozen and computes != torch.float16):
        return logits * BYTES_PER_LOGIT
    at_once = min(logits, max(CHUNK_LOGITS, int(config.vocab_size)))
    states = 3 * positions * int(config.hidden_size) * computes.itemsize
    copied = int(head.weight.numel()) * computes.itemsize if head.weight.dtype != computes else 0
    rounded = computes.itemsize if computes != torch.float32 else 0
    per_logit = rounded + torch.float32.itemsize * (2 if cuda else 1)
    return at_once * per_logit + states + copied


def _evaluation_bytes(model: Any, resolved: Resolved, batch: BatchShape) -> int:
    """Bytes of the logits of an evaluation, whose rows are taken to be as long as those of training."""
    if not evaluates(resolved):
        return 0
    training = resolved.config.training
    positions = -(-batch.rows * batch.labelled // training.per_device_train_batch_size)
    logits = training.per_device_eval_batch_size * positions * int(model.config.get_text_config().vocab_size)
    return logits * BYTES_PER_LOGIT


def _stepped(trained: list[torch.nn.Parameter], optim: str, strategy: Strategy, *, cuda: bool) -> tuple[int, int]:
    """Bytes of the optimizer's states, and of what its step needs meanwhile: DeepSpeed steps a float32 copy."""
    copied = strategy.uses_deepspeed
    stepped = [torch.empty_like(part, dtype=torch.float32) for part in trained] if copied else trained
    sizes = [tensor_bytes(part) for part in stepped]
    states = sum(optimizer_bytes(optim, tensor) for tensor in stepped)
    step_work = sum(sizes) if cuda and optim == "adamw_torch" else max(sizes)
    return (states + sum(sizes), step_work + sum(sizes)) if copied else (states, step_work)


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
    return number * tensor_bytes(parameter)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Bytes on one device; ``step_work``: what the optimizer's step needs; ``gathered``: weights made whole;
    ``offloaded``: what went to the host's memory."""

    weights: int
    gradients: int
    states: int
    step_work: int
    gathered: int = 0
    offloaded: int = 0


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
        moved = parts.states + parts.gradients if strategy.offloads("optimizer", to="cpu") else 0
        parts = replace(parts, states=0, gradients=0, step_work=0, offloaded=moved)
    if strategy.offloads("param"):
        moved = parts.weights if strategy.offloads("param", to="cpu") else 0
        parts = replace(parts, weights=0, offloaded=parts.offloaded + moved)
    return parts


def _gathered(model: Any, strategy: Strategy, precision: Precision, weights: int) -> int:
    """Bytes of weights that are whole at the same time although they are spread."""
    width = precision.torch_dtype.itemsize
    if strategy.uses_deepspeed:
        live = at(strategy.deepspeed, "zero_optimization.stage3_max_live_parameters")
        return min(weights, width * (ZERO3_LIVE if live in (None, "auto") else int(live)))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers_of(base)]
    outside = trainable_parameters(model)[1] - sum(layers)
    return min(weights, width * (outside + 2 * max(layers)))
