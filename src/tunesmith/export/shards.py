"""An adapter folded into its base shard by shard: the base is never in memory as a whole.

The model is built on the meta device, where weights have shapes and no values. Each tensor is then read from the base's
files, rounded as loading rounds it, folded by PEFT's own layer, and written. It knows the base's files by their names
in the model; where a model is stored otherwise, ``obstacle`` says so and the merge happens in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from peft.tuners.lora import Embedding, Linear
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from tunesmith.errors import ModelError, StorageError
from tunesmith.export.save import file_mode
from tunesmith.model import source
from tunesmith.model.adapter_config import read_lora_config
from tunesmith.model.adapters import load_adapter_strictly
from tunesmith.model.headers import INDEX, read_headers
from tunesmith.model.internals import keeps_some_weights_in_float32, without_weights
from tunesmith.model.load import ModelSpec
from tunesmith.model.precision import mutates_base
from tunesmith.model.quantize import quantization_config, rounded_as_loaded
from tunesmith.model.whole import open_checked
from tunesmith.report.folder import write_json

_PATTERN = "model{suffix}.safetensors"


@dataclass(frozen=True, slots=True)
class Base:
    """The base of an adapter as files, and its shape as a model without values.

    Attributes:
        files: tensor name -> the safetensors file that holds it.
        model: the unquantized model on the meta device.
        located: folder or hub name that configuration files are read from.
    """

    files: Mapping[str, Path]
    model: PreTrainedModel
    located: str


def open_base(how: ModelSpec) -> Base:
    """Look at the base's files and build the model's shape; no weight is read."""
    section = how.resolved.config.model
    found = open_checked(section)
    folder = source.local_folder(found.located, section.revision)
    files = {name: header.file for name, header in read_headers(folder).items()}
    model = without_weights(found.config, dtype=torch.float32, trust_remote_code=found.keywords["trust_remote_code"])
    return Base(files, model, found.located)


def saved_names(model: PreTrainedModel) -> list[str]:
    """Names of the tensors that a model's files hold: those of its state, a tied weight under one name."""
    return [name for name in model.state_dict() if name not in model.all_tied_weights_keys]


def obstacle(base: Base, adapted: PeftModel, *, rounds: bool) -> str | None:
    """Why this merge cannot be done tensor by tensor; None when it can.

    Args:
        adapted: the base's shape with the adapter on it.
        rounds: whether weights lose bits as the base is loaded.
    """
    model = base.model
    if model.is_custom_code():
        return "the model brings its own code"
    if rounds and keeps_some_weights_in_float32(model):
        return "this architecture keeps some weights in float32 whatever it is loaded in"
    if set(base.files) != set(saved_names(model)):
        return "the base's files name their tensors otherwise than the model does"
    mapping = get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    state = model.state_dict()
    for name in base.files:
        if rename_source_key(name, renamings, converters, model.base_model_prefix, state) != (name, None):
            return "the base's files hold tensors that are converted as they are loaded"
    return _unusual_adapter(model, adapted)


def _unusual_adapter(model: PreTrainedModel, adapted: PeftModel) -> str | None:
    config: Any = adapted.peft_config["default"]
    if config.layer_replication or config.lora_bias:
        return "the adapter repeats layers or carries biases of its own"
    kinds: set[type] = {type(layer) for layer in adapted.modules() if isinstance(layer, LoraLayer)}
    if not kinds <= {Linear, Embedding}:
        return "the adapter stands on layers that are neither linear nor embeddings"
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    touched = {
        name.removesuffix(suffix)
        for name, _ in adapted.get_base_model().named_modules()
        for suffix in (".base_layer", ".original_module")
        if name.endswith(suffix)
    }
    return "the adapter changes one of two weights that are tied" if tied & touched else None


class Fold:
    """Folds one tensor after the other: from the base's file to its value in the merged model.

    Args:
        adapted: the base's shape with the adapter on it, whose values are there.
        rounded: what loading makes of a weight, by name.
    """

    def __init__(self, base: Base, adapted: PeftModel, rounded: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self.base = base
        self.model = adapted.get_base_model()
        self.rounded = rounded
        # biases and layers that were trained whole lie in the adapter's file
        self.whole = {
            name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."): parameter.data
            for name, parameter in self.model.named_parameters()
            if parameter.device.type != "meta" and ".lora_" not in name
        }

    @torch.no_grad()
    def __call__(self, name: str) -> torch.Tensor:
        """The merged tensor ``name``, in float32 where it is floating.

        Raises:
            ModelError: the merged weight is not finite.
        """
        if name in self.whole:
            return self.whole[name]
        # opened for this tensor alone, so that the pages of the file are given back
        with safe_open(self.base.files[name], framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
        if not tensor.is_floating_point():
            return tensor
        tensor = self.rounded(name, tensor).float()
        module_name, _, own_name = name.rpartition(".")
        layer = self.model.get_submodule(module_name)
        return self._folded(layer, tensor, name) if own_name == "weight" and isinstance(layer, LoraLayer) else tensor

    def _folded(self, layer: Any, weight: torch.Tensor, name: str) -> torch.Tensor:
        """``layer`` is PEFT's ``Linear`` or ``Embedding``."""
        plain = layer.get_base_layer()
        empty = plain.weight
        plain.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        try:
            layer.merge(safe_merge=True)
            merged: torch.Tensor = plain.weight.data
            return merged
        except ValueError as error:
            raise ModelError(f"{name}: the merged weight is not finite", where=str(self.base.located)) from error
        finally:
            layer.merged_adapters.clear()
            plain.weight = empty


def fold(how: ModelSpec, base: Base, *, original: bool) -> tuple[Fold | None, str | None]:
    """What folds this adapter tensor by tensor, or None and the reason why nothing does.

    Args:
        original: fold into the published weights instead of those that were trained.
    """
    config = how.resolved.config
    bits = None if original else quantization_config(config.quantization, how.precision)
    weight_dtype = torch.float32 if original else how.weight_dtype
    if mutates_base(read_lora_config(how.folder).init_lora_weights):
        return None, "the adapter took its start out of the base"
    if read_lora_config(how.folder).trainable_token_indices:
        return None, "the adapter has tokens of its own"
    adapted = load_adapter_strictly(open_base(how).model, how.folder, how.base_folder(), how.checksum)
    why_not = obstacle(base, adapted, rounds=bits is not None or weight_dtype != torch.float32)
    if why_not is not None:
        return None, why_not
    in_bits = rounded_as_loaded(open_base(how).model, bits) if bits is not None else None

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.to(weight_dtype)
        return in_bits(name, weight) if in_bits is not None else weight

    return Fold(base, adapted, rounded), None


def write_shards(folded: Fold, stage: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    """Write the merged model's weights, index, configuration and generation defaults.

    Memory holds one shard in ``dtype``, one tensor in float32, and the adapter.

    Raises:
        StorageError: a shard reads back otherwise than it was written.
    """
    model = folded.base.model
    shapes = model.state_dict()
    # in the library's order, which decides what goes into which file
    state = {name: _cast(shapes[name], dtype) for name in sorted(folded.base.files, key=dot_natural_key)}
    plan = split_torch_state_dict_into_shards(state, filename_pattern=_PATTERN, max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        shard = {name: _cast(folded(name), dtype) for name in names}
        save_file(shard, stage / file, metadata={"format": "pt"})
        (stage / file).chmod(file_mode())  # safetensors makes its files readable to their owner alone
        _check_shard(stage / file, shard)
    if plan.is_sharded:
        sizes = {"total_parameters": model.num_parameters(), **plan.metadata}
        write_json(stage / INDEX, {"metadata": sizes, "weight_map": dict(sorted(plan.tensor_to_filename.items()))})
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.use_cache = True
    model.config.save_pretrained(stage)


def generation_defaults(base: Base, revision: str | None) -> GenerationConfig:
    """The base's generation settings, or those that follow from its configuration."""
    if source.read_json(base.located, "generation_config.json", revision):
        keywords: dict[str, Any] = {"revision": revision} if revision else {}
        return GenerationConfig.from_pretrained(base.located, **keywords)
    return GenerationConfig.from_model_config(base.model.config)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _check_shard(path: Path, shard: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as tensors:
        if set(tensors.keys()) != set(shard):
            raise StorageError("tensors are missing in what was written", where=str(path))
        for name, expected in shard.items():
            if not torch.equal(tensors.get_tensor(name), expected):
                raise StorageError(f"{name} was read back with other values", where=str(path))
            if expected.is_floating_point() and not torch.isfinite(expected).all():
                raise StorageError(f"{name} holds values that are not finite", where=str(path))
