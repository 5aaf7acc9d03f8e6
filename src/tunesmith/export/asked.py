"""The run's model, asked what a merged one will be asked: in the arithmetic of training, and in the merged model's.

A large model on the cpu is held once at most: quantized as it was trained, or layer by layer from its files.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.config.permissions import permissions_of
from tunesmith.export import proof
from tunesmith.export.checkpoint import Rounding, open_base
from tunesmith.export.layered import layer_by_layer
from tunesmith.export.update import plain
from tunesmith.model import source
from tunesmith.model.adapters import base_of, load_adapter_strictly
from tunesmith.model.headers import read_headers
from tunesmith.model.internals import without_weights
from tunesmith.model.load import ModelSpec, load_from_spec, model_spec
from tunesmith.model.memory.host import LARGE
from tunesmith.model.packed import packed_weights
from tunesmith.model.precision import Precision
from tunesmith.model.quantize import dequantized, is_quantized, quantized_layers, use_dequantized_weights
from tunesmith.model.whole import open_checked

BaseKind = Literal["trained", "original"]
DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(slots=True)
class Asked:
    """What the run's model said, and what it is needed for afterwards.

    Attributes:
        reading: as the run computes.
        noise: how far the model is from itself, in the arithmetic of training and in that of the merged model.
        between: the two, in words.
        questions: what was asked, which is less than was given where the model is large.
        held: the quantized weights that the run's model really multiplies with, by name; None where there are none.
    """

    reading: proof.Reading
    noise: proof.Difference
    between: str
    questions: proof.Questions
    held: Rounding | None = None


def ask(how: ModelSpec, base: BaseKind, dtype: DTypeName, questions: proof.Questions, work: Path) -> Asked:
    """Have the run's model answer and read, in both arithmetics, and leave the texts in ``work`` for the new process.

    Args:
        how: how the run's model is loaded.
        base: what the adapter is folded into.
        dtype: of the merged weights.
        questions: the prompts.
        work: an empty folder.
    """
    how = _on_the_original(how) if base == "original" else how
    large = num_weights(how) * max(how.weight_dtype.itemsize, getattr(torch, dtype).itemsize) > LARGE
    device = "cpu" if how.device.kind == "cpu" else str(how.device)
    at_once = large and device == "cpu"
    questions = questions.for_large_models() if at_once else questions
    quantization = how.resolved.config.quantization
    one = _streamed(how, how.weight_dtype) if at_once and not is_quantized(quantization) else _loaded(how)
    with one.autocast(device):
        texts, reading = proof.answer_and_read(one.model, questions, device, at_once=at_once)
    computing: DTypeName = "float32" if at_once else dtype
    if (how.precision.dtype, dtype) == ("float32", "float32") and not quantization.load_in_8bit:
        other, between = one.moved(), "its weights moved by a unit in their last place"
    else:
        other = one.as_merged(getattr(torch, dtype), getattr(torch, computing))
        between = f"{dtype} weights multiplied in {computing}"
    noise = proof.difference(reading, proof.read(other, texts, device, at_once=at_once))
    section = how.resolved.config.model
    own_code = source.may_run_code(section, source.locate(section.model_name_or_path, section.revision))
    proof.write_questions(work, texts, own_code=own_code, large=large, device=device)
    return Asked(reading, noise, f"{one.arithmetic}, and {between}", questions, one.held)


@dataclass(slots=True)
class _Subject:
    """A run's model that is asked."""

    how: ModelSpec
    model: Any
    precision: Precision
    streamed: bool

    @property
    def arithmetic(self) -> str:
        """How it computes, in words."""
        eight = ", int8 layers" if self.how.resolved.config.quantization.load_in_8bit else ""
        return f"{self.precision.dtype}{eight}"

    @property
    def held(self) -> Rounding | None:
        """Its quantized weights by name, if it has some."""
        layers = {f"{plain(name)}.weight": layer for name, layer in quantized_layers(base_of(self.model))}
        if not layers or next(packed_weights(self.model), None) is not None:
            return None  # bare parameters are rounded anew
        return lambda name, weight: dequantized(layers[name]).cpu() if name in layers else weight

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """The context of its arithmetic."""
        return self.precision.autocast(device)

    def as_merged(self, dtype: torch.dtype, computing: torch.dtype) -> Any:
        """The model with its weights in another type, multiplied in a third; for good."""
        if self.streamed:
            return _streamed(self.how, dtype).model
        use_dequantized_weights(self.model, dtype, computing)
        return self.model

    def moved(self) -> Any:
        """The model with weights as another order of summation might have left them; for good.

        Float32 has no other arithmetic to compare with, and experts that are nearly as good as each other or a long
        state make much of the last bit there, too.
        """
        draw = torch.Generator().manual_seed(0)
        if self.streamed:
            return _streamed(self.how, torch.float32, lambda weight: moved(weight, draw)).model
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.data = moved(parameter.data, draw)
        return self.model


def moved(weight: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """A weight whose numbers went up or down by about a unit in the last place, or stayed; others are left alone."""
    if not weight.is_floating_point() or weight.itemsize < 2:
        return weight
    steps = torch.randint(-1, 2, weight.shape, generator=draw, dtype=torch.int8).to(weight.device)
    return weight * (1 + torch.finfo(weight.dtype).eps * steps.to(weight.dtype))


def num_weights(how: ModelSpec) -> int:
    """Numbers in the base's files."""
    return sum(torch.Size(header.shape).numel() for header in read_headers(how.base_folder()).values())


def give_memory_back() -> None:
    """What a model that is gone has held, on every device."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU was used


def _loaded(how: ModelSpec) -> _Subject:
    trained = load_from_spec(how)
    return _Subject(how, trained.model, trained.precision, streamed=False)


def _streamed(
    how: ModelSpec, dtype: torch.dtype, change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> _Subject:
    """The model layer by layer from its files; weights as they are held in ``dtype``, multiplied in float32."""
    found = open_checked(how.resolved.config.model)
    trusted = found.keywords["trust_remote_code"]
    shape: PreTrainedModel = without_weights(found.config, buffers=True, dtype=torch.float32, trust_remote_code=trusted)
    model: PeftModel = load_adapter_strictly(shape, how.folder, how.base_folder(), how.checksum)
    base = open_base(how)

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
        held = weight if base.keeps(name, how.weight_dtype) else weight.to(how.weight_dtype)
        held = held if base.keeps(name, dtype) else held.to(dtype)
        return held if change is None else change(held)

    layer_by_layer(model, base, rounded)
    return _Subject(how, model.eval(), Precision("float32", "the proof, layer by layer"), streamed=True)


def _on_the_original(how: ModelSpec) -> ModelSpec:
    unquantized = model_spec(
        how.folder,
        base=how.resolved.config.model.model_name_or_path,
        quantized=False,
        permissions=permissions_of(how.resolved.values()),
    )
    return replace(unquantized, precision=Precision("float32", "the proof"), weight_dtype=torch.float32)
