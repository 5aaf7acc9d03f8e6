"""A base as its files hold it: which tensors become which weights of the model, and back, a few at a time.

The model is built on the meta device, where weights have shapes and no values. What the library would do with all
files at once is done here with the tensors of one weight, by the library's own steps; so whatever a checkpoint calls
its tensors, a merged model is stored as its base is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from tunesmith.config.schema import ModelSection
from tunesmith.errors import ModelError
from tunesmith.model import source
from tunesmith.model.headers import Header, read_headers
from tunesmith.model.internals import names_kept_in_float32, without_weights
from tunesmith.model.load import ModelSpec
from tunesmith.model.whole import Checked, open_checked


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of the files that become weights of the model together.

    Attributes:
        sources: their names in the files.
        pattern: of each source, what the library's converter knows it by; None where a tensor is only renamed.
        target: the weight, or the first of those that come out of a conversion.
    """

    sources: tuple[str, ...]
    pattern: tuple[str, ...] | None
    target: str


class Base:
    """The base of an adapter as files, and its shape as a model without values.

    Attributes:
        headers: every tensor of the files by its name there.
        model: the unquantized model on the meta device.
        located: folder or hub name that configuration files are read from.
        folder: the folder with its files.
        groups: name in the files -> the group that it belongs to.
        carried: names of the files that have no place in the model (multi-token prediction), to be carried along.
    """

    def __init__(self, headers: Mapping[str, Header], model: PreTrainedModel, located: str, folder: Path) -> None:
        self.headers = headers
        self.model = model
        self.located = located
        self.folder = folder
        self._mapping: list[Any] = list(get_model_conversion_mapping(model))
        self._converters = {
            pattern: step
            for step in self._mapping
            if isinstance(step, WeightConverter)
            for pattern in step.source_patterns
        }
        self.groups = {source: group for group in self._find_groups() for source in group.sources}
        self.carried = sorted(set(headers) - set(self.groups), key=dot_natural_key)

    def read(self, name: str) -> torch.Tensor:
        """A tensor as its file holds it; the file is opened for it alone, so that its pages are given back."""
        with safe_open(self.headers[name].file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor

    def converted(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of the model by name, from the tensors of a group."""
        if group.pattern is None:
            return {group.target: tensors[group.sources[0]]}
        converter: Any = deepcopy(self._converters[group.pattern[0]])
        for name, pattern in zip(group.sources, group.pattern, strict=True):
            converter.add_tensor(group.target, name, pattern, tensors[name])
        found = converter.convert(group.target, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def reverted(self, group: Group, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The way back from ``converted``.

        Raises:
            ModelError: the library does not lead back to the names of the files.
        """
        if group.pattern is None:
            return {group.sources[0]: weights[group.target]}
        holder: Any = self.model
        holder._weight_conversions = [step for step in self._mapping if step.was_used()]
        found: dict[str, torch.Tensor] = revert_weight_conversion(self.model, weights)
        if set(found) != set(group.sources):
            raise ModelError(
                f"{group.target} is made of {len(group.sources)} tensors, and the library does not give them back",
                where=str(self.folder),
                remedy="keep using the adapter",
            )
        return found

    def targets(self, group: Group) -> tuple[str, ...]:
        """Names of all weights that a group becomes, found on shapes alone."""
        if group.pattern is None:
            return (group.target,)
        empty = {name: torch.empty(self.headers[name].shape, device="meta") for name in group.sources}
        return tuple(self.converted(group, empty))

    @cached_property
    def of_weights(self) -> dict[str, Group]:
        """Weight of the model -> the group that it comes from."""
        return {name: group for group in set(self.groups.values()) for name in self.targets(group)}

    def keeps(self, name: str, dtype: torch.dtype) -> bool:
        """Whether the architecture holds a weight in float32 although the model is loaded in ``dtype``."""
        return names_kept_in_float32(self.model, dtype)(name)

    def _find_groups(self) -> Iterator[Group]:
        """The library's own renaming of each tensor, as its loader applies it."""
        state = self.model.state_dict()
        renamings = [step for step in self._mapping if isinstance(step, WeightRenaming)]
        converters = [step for step in self._mapping if isinstance(step, WeightConverter)]
        found: dict[str, list[tuple[str, str | None]]] = {}
        for name in sorted(self.headers, key=dot_natural_key):
            prefix = self.model.base_model_prefix
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target in state:
                found.setdefault(target, []).append((name, pattern))
        for target, members in found.items():
            names = tuple(name for name, _ in members)
            patterns = tuple(pattern for _, pattern in members if pattern is not None)
            yield Group(names, patterns or None, target)


def open_base(how: ModelSpec) -> Base:
    """Look at the base's files and build the model's shape; no weight is read, unless nobody has looked at them yet."""
    open_checked(how.resolved.config.model)
    return open_files(how.resolved.config.model)


def open_files(section: ModelSection) -> Base:
    """A model that was opened before, as its files."""
    found = open_checked(section, read_weights=False)
    folder = source.local_folder(found.located, section.revision)
    return Base(read_headers(folder), _shape(found), found.located, folder)


def shape_of(how: ModelSpec) -> PreTrainedModel:
    """The base's model without values, a new one at each call, since adapters and quantizers change it."""
    return _shape(open_checked(how.resolved.config.model, read_weights=False))


def _shape(found: Checked) -> PreTrainedModel:
    trusted = found.keywords["trust_remote_code"]
    return without_weights(found.config, dtype=torch.float32, trust_remote_code=trusted)


def generation_defaults(base: Base, revision: str | None) -> GenerationConfig:
    """The base's generation settings, or those that follow from its configuration."""
    if source.read_json(base.located, "generation_config.json", revision):
        keywords: dict[str, Any] = {"revision": revision} if revision else {}
        return GenerationConfig.from_pretrained(base.located, **keywords)
    return GenerationConfig.from_model_config(base.model.config)


Rounding = Callable[[str, torch.Tensor], torch.Tensor]
"""From a weight's name in the model and its value in the files to what training multiplied with."""
