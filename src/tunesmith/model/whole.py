"""Whether a model's files and its configuration are one whole: every weight from the files, every tensor used.

The library itself is asked: its own loader runs on tensors without contents and tells what it would miss, leave out or
cannot convert. So renamed, merged and split tensors count as the library loads them. Nothing is allocated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from tunesmith.config.schema import ModelSection
from tunesmith.errors import ModelError
from tunesmith.model import headers, source
from tunesmith.model.digests import check_finite
from tunesmith.model.headers import FLOATING, Header, few
from tunesmith.model.internals import without_weights
from tunesmith.model.quantize import check_not_quantized

MANY_LAYERS = 512
"""Layers beyond which a configuration must be backed by as many tensors before its shape is even built."""
REMEDY = "use a complete copy of the model, with the config.json that belongs to it"


@dataclass(frozen=True, slots=True)
class Checked:
    """A model whose files are whole.

    Attributes:
        located: folder or hub name to load it from.
        keywords: what every loading call of the library is told, see ``source.loading_keywords``.
        config: its configuration.
    """

    located: str
    keywords: dict[str, Any]
    config: PreTrainedConfig


def open_checked(section: ModelSection, *, read_weights: bool = True) -> Checked:
    """Find a model and check that its files and its configuration are one whole.

    Args:
        section: names the model.
        read_weights: also look whether every value is finite, which reads the files once; without it a hub model's
            weights are not even fetched.

    Raises:
        ModelError: see ``check_whole`` and ``digests.check_finite``; or the model is not there, or quantized already.
        UnsafeError: it would run code, or open a pickle, that nobody allowed.
    """
    name = section.model_name_or_path
    located = source.locate(name, section.revision)
    keywords = source.loading_keywords(section, located)
    try:
        config = AutoConfig.from_pretrained(located, **keywords)
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the model's configuration cannot be loaded ({reason[:400]})", where=name) from error
    check_not_quantized(config, name)
    trusted = keywords["trust_remote_code"]
    if read_weights or Path(located).is_dir():
        folder = source.fetched(located, section.revision)
        check_whole(folder, config, trust_remote_code=trusted)
        if read_weights:
            check_finite(folder)
    else:
        check_headers(headers.hub_headers(located, section.revision), config, name, trust_remote_code=trusted)
    return Checked(located, keywords, config)


def check_whole(folder: Path, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Compare the headers of a model's files with the model that its configuration describes.

    Args:
        folder: the model's files.
        config: its configuration.
        trust_remote_code: whether the model's own code may run.

    Raises:
        ModelError: weights are missing, left over, twice there, of another shape or no floating-point numbers; a file
            is damaged; the configuration cannot be built; or the generation defaults cannot be read.
    """
    found = headers.read_headers(folder)
    check_headers(found, config, str(folder), trust_remote_code=trust_remote_code)
    check_generation_defaults(folder)


def check_headers(
    found: Mapping[str, Header], config: PreTrainedConfig, where: str, *, trust_remote_code: bool = False
) -> None:
    """``check_whole`` for headers that were read elsewhere."""
    _check_number_of_layers(found, config, where)
    try:
        model = without_weights(
            deepcopy(config), dtype=torch.float32, trust_remote_code=trust_remote_code, attn_implementation="eager"
        )
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the model cannot be built from its configuration ({reason[:400]})", where=where) from error
    targets = _targets(found, model)
    _check_types(found, targets, model, where)
    twice = [names for names in targets.values() if len(names) > 1]
    if twice:
        raise ModelError(f"tensors stand for the same weight: {few(twice[0])}", where=where, remedy=REMEDY)
    judge(_loading_info(found, model), where)


def judge(info: Mapping[str, Any], where: str) -> None:
    """Refuse what the library's loading could not do.

    Args:
        info: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` and perhaps ``conversion_errors``.

    Raises:
        ModelError: one of them is not empty.
    """
    parts = []
    if info["missing_keys"]:
        parts.append(_part(info["missing_keys"], "missing in the files"))
    if info["unexpected_keys"]:
        parts.append(_part(info["unexpected_keys"], "in the files without a place in the model"))
    if info["mismatched_keys"]:
        described = [
            f"{name} {tuple(stored)} instead of {tuple(expected)}" for name, stored, expected in info["mismatched_keys"]
        ]
        parts.append(f"{len(described)} of another shape ({few(described)})")
    if info.get("conversion_errors"):
        parts.append(_part(info["conversion_errors"], "cannot be converted"))
    if parts:
        raise ModelError(
            f"the weights are not those of its config.json: {'; '.join(parts)}", where=where, remedy=REMEDY
        )


def check_generation_defaults(folder: Path) -> None:
    """Refuse ``generation_config.json`` where the library would fall back to defaults without a word.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        defaults = GenerationConfig.from_pretrained(str(folder))
        _check_token_ids(defaults)
    except Exception as error:  # whatever is wrong in it, it is this file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"the generation defaults cannot be read ({reason[:300]})", where=str(path), remedy="repair or remove it"
        ) from error


def _check_token_ids(defaults: GenerationConfig) -> None:
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(defaults, name)
        for number in value if isinstance(value, list) and name == "eos_token_id" else [value]:
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
                raise ValueError(f"{name} is {value!r}")


def _check_number_of_layers(found: Mapping[str, Header], config: PreTrainedConfig, where: str) -> None:
    """Building a shape takes time for each layer, so an absurd number is refused before."""
    for part in (config, config.get_text_config()):
        wanted = getattr(part, "num_hidden_layers", None)
        if isinstance(wanted, int) and wanted > max(MANY_LAYERS, len(found)):
            raise ModelError(
                f"config.json wants {wanted} layers, and the files hold {len(found)} tensors",
                where=where,
                remedy=REMEDY,
            )


def _targets(found: Iterable[str], model: PreTrainedModel) -> dict[str, list[str]]:
    """Weight of the model -> the tensors that become it without a conversion, as the library renames them."""
    state, mapping = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    targets: dict[str, list[str]] = defaultdict(list)
    for name in found:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        targets[target if pattern is None else f"{target} from {name}"].append(name)
    return targets


def _check_types(
    found: Mapping[str, Header], targets: Mapping[str, list[str]], model: PreTrainedModel, where: str
) -> None:
    state = model.state_dict()
    for target, names in targets.items():
        expected = state.get(target.partition(" from ")[0])
        for name in names:
            if expected is not None and expected.is_floating_point() and found[name].dtype not in FLOATING:
                raise ModelError(
                    f"{name} is stored as {found[name].dtype}, and weights are floating-point numbers",
                    where=where,
                    remedy="use the unquantized original",
                )


def _loading_info(found: Mapping[str, Header], model: PreTrainedModel) -> dict[str, Any]:
    """What the library says after loading tensors of these names and shapes, without contents, into the model."""
    tensors = {name: torch.empty(header.shape, device="meta") for name, header in found.items()}
    mapping: list[Any] = list(get_model_conversion_mapping(model))
    how = LoadStateDictConfig(device_map={"": "meta"}, dtype=torch.float32, weight_mapping=mapping)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # nothing is loaded
    try:
        info, _ = convert_and_load_state_dict_in_model(model, tensors, how)
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        model._adjust_missing_and_unexpected_keys(info)
    finally:
        if shown:
            logging.enable_progress_bar()
    told: dict[str, Any] = info.to_dict()
    return told | {"conversion_errors": info.conversion_errors}


def _part(names: Iterable[str], what: str) -> str:
    listed = list(names)
    return f"{len(listed)} {what} ({few(listed)})"
