"""An adapter folded into its base shard by shard: the base is never in memory as a whole, and each tensor is proven.

Each weight is read from the base's files, rounded as loading rounds it, folded by PEFT's own layer, held against what
the adapter's file says it must be, and written under the names of the base's files. What the adapter does not touch is
written as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from peft.tuners.lora.layer import Embedding, ParamWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.core_model_loading import dot_natural_key

from tunesmith.errors import ModelError, NumericsError, StorageError
from tunesmith.export.checkpoint import Base, Group, Rounding, shape_of
from tunesmith.export.save import file_mode
from tunesmith.export.update import Factors, finite, merged_is_expected, plain, sites
from tunesmith.model.adapter_config import read_lora_config
from tunesmith.model.adapter_file import read_adapter
from tunesmith.model.adapters import load_adapter_strictly
from tunesmith.model.digests import sha256_of_file
from tunesmith.model.headers import INDEX, few
from tunesmith.model.load import ModelSpec
from tunesmith.model.parts import beside_language, is_inside
from tunesmith.model.precision import mutates_base
from tunesmith.model.quantize import quantization_config, rounded_as_loaded
from tunesmith.report.folder import write_json

_PATTERN = "model{suffix}.safetensors"
HALF = 0.5 + 1e-3
"""Units in the last place that rounding alone may put between a merged weight and base + update."""


@dataclass(slots=True)
class Ledger:
    """What was proven of each tensor while it was written.

    Attributes:
        folded: tensors that the adapter changes; every one is base + update to half a unit in the last place.
        kept: tensors that are those of the base, bit for bit or as it was multiplied with.
        carried: tensors that have no place in the model and were copied.
        largest_error: of the folded tensors, in units in the last place of their type.
        sha256: digest of each file that was written and read back.
    """

    folded: int = 0
    kept: int = 0
    carried: int = 0
    largest_error: float = 0.5
    sha256: dict[str, str] = field(default_factory=dict)


class Fold:
    """Folds one tensor after the other: from the base's files to its value in the merged model.

    Args:
        base: the base's files and shape.
        adapted: the base's shape with the adapter on it, whose values are there.
        factors: the same adapter as its file holds it.
        rounded: what loading makes of a weight, by name.
        dtype: type of the merged weights.
    """

    def __init__(self, base: Base, adapted: PeftModel, factors: Factors, rounded: Rounding, dtype: torch.dtype) -> None:
        self.base = base
        self.model: Any = adapted.get_base_model()
        self.factors = factors
        self.ledger = Ledger()
        self._sites = sites(adapted)
        self._rounded = rounded
        self._dtype = dtype
        self._beside = beside_language(base.model)
        self._ready: dict[str, torch.Tensor] = {}
        self._apart = apart(base, factors)
        tied = base.model.all_tied_weights_keys
        lost = [
            name
            for name in factors.touched
            if name not in base.of_weights and name not in self._apart and tied.get(name) not in factors.rows
        ]
        if lost:
            raise ModelError(
                f"the adapter changes {len(lost)} weights that the base's files do not hold ({few(lost)})",
                where=str(base.folder),
                remedy="keep using the adapter",
            )
        # biases and layers that were trained whole lie in the adapter's file
        self._whole = {
            plain(name): parameter.data
            for name, parameter in self.model.named_parameters()
            if parameter.device.type != "meta" and ".lora_" not in name and ".token_adapter." not in name
        }

    @property
    def unties(self) -> bool:
        """Whether head and embedding are one weight no more."""
        return bool(self._apart)

    @property
    def names(self) -> list[str]:
        """Names of the merged model's tensors, in the library's order, which decides what goes into which file."""
        tied = self.base.model.all_tied_weights_keys
        twice = {name for name, group in self.base.groups.items() if tied.get(group.target) in self.factors.rows}
        new = [name for name in self._apart if name not in self.base.of_weights]
        return sorted([*(set(self.base.headers) - twice), *new], key=dot_natural_key)

    @torch.no_grad()
    def __call__(self, name: str) -> torch.Tensor:
        """The merged tensor ``name`` as it is written.

        Raises:
            NumericsError: the merged weight is not base + update, or not finite.
        """
        if name in self._ready:
            return self._ready.pop(name)
        weight = self._weight_of(name)
        if weight in self._apart:
            group = self._begins_as(weight)
            found = self.base.converted(group, {one: self.base.read(one) for one in group.sources})
            self._count(touched=weight in self.factors.touched, number=1)
            return self._weight(weight, found[group.target])
        if weight is None:
            self.ledger.carried += 1
            return self.base.read(name)
        self._ready |= self._merged(self.base.groups[name])
        return self._ready.pop(name)

    def _weight_of(self, name: str) -> str | None:
        """The model's name of a tensor, or of the first weight that it becomes part of; None of one without a place."""
        if name in self.base.groups:
            return self.base.groups[name].target
        return name if name in self._apart else None

    def _begins_as(self, weight: str) -> Group:
        """The tensors that a weight which is tied no more begins as: those that the library would have loaded."""
        source = self._apart[weight]
        return self.base.of_weights[source if source in self.base.of_weights else weight]

    def shape(self, name: str) -> torch.Tensor:
        """The merged tensor's shape and type, without its value."""
        source = name if name in self.base.headers else self._begins_as(name).sources[0]
        header = self.base.headers[source]
        group = self.base.groups.get(source)
        shape = list(header.shape)
        if group is not None and group.pattern is None and group.target in self.factors.rows:
            shape[0] = max(shape[0], max(self.factors.rows[group.target][0]) + 1)
        with safe_open(header.file, framework="pt") as tensors:
            dtype = tensors.get_slice(source)[..., :0].dtype if shape else tensors.get_tensor(source).dtype
        return torch.empty(shape, dtype=dtype if group is None else self._type(group.target, dtype), device="meta")

    def _type(self, target: str, found: torch.dtype) -> torch.dtype:
        """A weight that the architecture keeps in float32 keeps its bits; all others get the merged model's type."""
        return found if not found.is_floating_point or self.base.keeps(target, self._dtype) else self._dtype

    def _merged(self, group: Group) -> dict[str, torch.Tensor]:
        tensors = {name: self.base.read(name) for name in group.sources}
        targets = self.base.targets(group)
        touched = self.factors.touched.intersection(targets)
        if group.pattern is not None and not touched and not self._changes(targets):
            self._count(touched=False, number=len(tensors))
            return {name: tensor.to(self._type(group.target, tensor.dtype)) for name, tensor in tensors.items()}
        weights = self.base.converted(group, tensors)
        if group.pattern is not None:
            self._check_way_back(group, tensors, weights)
        types = {name: self._type(name, weight.dtype) for name, weight in weights.items()}
        merged = {name: self._weight(name, weight) for name, weight in weights.items()}
        found = self.base.reverted(group, merged)
        self._count(touched=bool(touched), number=len(found))
        return {name: tensor.to(types.get(group.target, tensor.dtype)).contiguous() for name, tensor in found.items()}

    def _count(self, *, touched: bool, number: int) -> None:
        self.ledger.folded += number if touched else 0
        self.ledger.kept += 0 if touched else number

    def _changes(self, targets: tuple[str, ...]) -> bool:
        """Whether loading rounds one of the weights, as far as their type tells."""
        return any(not is_inside(name, self._beside) for name in targets) and self._rounded is not as_it_is

    def _check_way_back(self, group: Group, before: Mapping[str, Any], weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.base.reverted(group, dict(weights)).items():
            if not torch.equal(tensor, before[name]):
                raise ModelError(
                    f"{name}: the library's conversion of {group.target} cannot be undone",
                    where=str(self.base.folder),
                    remedy="keep using the adapter",
                )

    def _weight(self, name: str, found: torch.Tensor) -> torch.Tensor:
        """The merged weight ``name`` of the model, proven, in the type in which it is written."""
        if not found.is_floating_point():
            return found
        dtype = self._type(name, found.dtype)
        if is_inside(name, self._beside) and name not in self.factors.touched:
            return found.to(dtype)
        held = self._rounded(name, found)
        if name not in self.factors.touched:
            if not finite([held]):
                raise NumericsError(f"{name} of the base holds values that are not finite", where=str(self.base.folder))
            return held.to(dtype)
        held = held.float()
        folded = self._folded(name, held)
        merged = folded.to(dtype)
        if not finite([merged]):
            self._refuse_infinite(name, held, folded, dtype)
        del folded
        expected, slack = self.factors.expected(name, held)
        error = merged_is_expected(merged, expected, slack)
        if error > HALF:
            raise NumericsError(
                f"the merged model is not what was trained and is not kept: {name} is {error:.3g} units in the last "
                "place from base + update",
                where=str(self.base.folder),
                remedy="keep using the adapter",
            )
        self.ledger.largest_error = max(self.ledger.largest_error, error)
        return merged

    def _refuse_infinite(self, name: str, held: torch.Tensor, folded: torch.Tensor, dtype: torch.dtype) -> None:
        if not finite([held]):
            raise NumericsError(f"{name} of the base holds values that are not finite", where=str(self.base.folder))
        if not finite([folded]):
            raise NumericsError(
                f"{name}: base + update is not finite",
                where=str(self.base.folder),
                remedy="train with a lower learning rate",
            )
        raise NumericsError(
            f"{name}: the merged weight is not finite in {str(dtype).removeprefix('torch.')}",
            where=str(self.base.folder),
            remedy="merge with --dtype bfloat16 or float32",
        )

    def _folded(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight in float32 as PEFT's own layer merges it."""
        if name in self._whole:
            whole: torch.Tensor = self._whole[name]
            return whole
        if name in self.factors.rows:
            ids, rows = self.factors.rows[name]
            missing = weight.new_zeros(max(0, max(ids) + 1 - len(weight)), *weight.shape[1:])
            weight = torch.cat([weight, missing]).index_copy(0, torch.tensor(ids), rows.to(weight))
        if name.endswith(".bias"):
            owner = self._sites[f"{name.removesuffix('.bias')}.weight"]
            bias: torch.Tensor = owner.lora_B["default"].bias.data.float()
            scaling: float = owner.scaling["default"]
            return weight + bias * scaling
        layer = self._sites.get(name)
        folded: torch.Tensor = weight if layer is None else self._by_layer(layer, weight)
        return folded

    def _by_layer(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        holder = layer.get_base_layer()
        own = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
        empty = getattr(holder, own)
        setattr(holder, own, torch.nn.Parameter(weight.clone(), requires_grad=False))
        biases = layer.lora_bias
        layer.lora_bias = {} if isinstance(layer, Embedding) else dict.fromkeys(biases, False)  # folded by themselves
        try:
            layer.merge(safe_merge=False)  # into a copy; whether all is finite is seen to afterwards
            merged: torch.Tensor = getattr(holder, own).data
            return merged
        finally:
            layer.merged_adapters.clear()
            layer.lora_bias = biases
            setattr(holder, own, empty)


def as_it_is(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Loading that changes nothing."""
    return weight


def apart(base: Base, factors: Factors) -> dict[str, str]:
    """Weights that are tied to others and get values of their own, because the adapter trained one of the two alone ->
    the weights that they begin as.

    Raises:
        ModelError: a model without a switch for that uses one weight in several places, trained apart.
    """
    found = {}
    model = base.model
    head = {id(part) for part in (model.get_output_embeddings(), model.get_input_embeddings()) if part is not None}
    for name, source in model.all_tied_weights_keys.items():
        if not {name, source} & factors.touched or _rows_alone(name, source, factors):
            continue
        places = {id(model.get_submodule(one.rpartition(".")[0])) for one in (name, source)}
        if not places <= head:
            raise ModelError(
                f"{name} and {source} are one weight, and the adapter trained them apart: no plain model holds both",
                where=str(base.folder),
                remedy="keep using the adapter, or train with exclude_modules naming all places but one",
            )
        found[name] = source
    return found


def _rows_alone(name: str, source: str, factors: Factors) -> bool:
    """Whether the adapter changes rows of tokens alone, which tied weights share."""
    others = {*factors.updates, *factors.biases, *factors.whole}
    return not {name, source} & others


def fold(how: ModelSpec, base: Base, dtype: torch.dtype, *, original: bool, held: Rounding | None = None) -> Fold:
    """What folds this adapter tensor by tensor.

    Args:
        dtype: type of the merged weights.
        original: fold into the published weights instead of those that were trained.
        held: quantized weights as a loaded model holds them; they are rounded anew without it.

    Raises:
        ModelError: no plain model can hold what the adapter does.
    """
    config = read_lora_config(how.folder)
    if config.layer_replication:
        raise ModelError("the adapter repeats layers, which a merge cannot write", where=str(how.folder))
    if mutates_base(config.init_lora_weights):
        raise ModelError(
            f"the adapter took its start out of the base ({config.init_lora_weights}) and is not in portable form",
            where=str(how.folder),
            remedy="save it with path_initial_model_for_weight_conversion (PEFT), or as tunesmith saves it",
        )
    adapted = load_adapter_strictly(shape_of(how), how.folder, how.base_folder(), how.checksum)
    factors = Factors(read_adapter(how.folder).tensors, config, adapted)
    rounded = as_it_is if original else _rounding(how, base, held)
    return Fold(base, adapted, factors, rounded, dtype)


def _rounding(how: ModelSpec, base: Base, in_bits: Rounding | None) -> Rounding:
    bits = quantization_config(how.resolved.config.quantization, how.precision)
    if bits is None and how.weight_dtype == torch.float32:
        return as_it_is
    if in_bits is None and bits is not None:
        in_bits = rounded_as_loaded(shape_of(how), bits)

    def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
        held = weight.float() if base.keeps(name, how.weight_dtype) else weight.to(how.weight_dtype)
        return in_bits(name, held) if in_bits is not None else held

    return rounded


def write_shards(folded: Fold, stage: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    """Write the merged model's weights, index and configuration.

    Memory holds one shard in ``dtype``, the tensors of one weight in float32, and the adapter.

    Raises:
        NumericsError: a tensor is not what it must be.
        StorageError: a shard reads back otherwise than it was written.
    """
    state = {name: folded.shape(name) for name in folded.names}
    plan = split_torch_state_dict_into_shards(state, filename_pattern=_PATTERN, max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        shard = {name: folded(name).contiguous() for name in names}
        save_file(shard, stage / file, metadata={"format": "pt"})
        (stage / file).chmod(file_mode())  # safetensors makes its files readable to their owner alone
        _check_shard(stage / file, shard)
        del shard
        folded.ledger.sha256[file] = sha256_of_file(stage / file)
    model = folded.model
    if plan.is_sharded:
        sizes = {"total_parameters": model.num_parameters(), **plan.metadata}
        write_json(stage / INDEX, {"metadata": sizes, "weight_map": dict(sorted(plan.tensor_to_filename.items()))})
    for config in (model.config, model.config.get_text_config()):
        config.dtype = str(dtype).removeprefix("torch.")
        if folded.unties:
            config.tie_word_embeddings = False
    model.config.architectures = [type(folded.base.model).__name__]
    model.config.save_pretrained(stage)


def _check_shard(path: Path, shard: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as tensors:
        if set(tensors.keys()) != set(shard):
            raise StorageError("tensors are missing in what was written", where=str(path))
        for name, expected in shard.items():
            if expected.numel() == 0:
                raise StorageError(f"{name} is empty", where=str(path))
            if not torch.equal(tensors.get_tensor(name), expected):
                raise StorageError(f"{name} was read back with other values", where=str(path))
            if not finite([expected]):
                raise StorageError(f"{name} holds values that are not finite", where=str(path))
