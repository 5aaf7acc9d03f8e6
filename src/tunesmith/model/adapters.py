"""Low-rank adapters: from settings to PEFT, onto a model, and strictly back from a file.

It neither loads base models nor writes files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.config.schema import AdapterSection
from tunesmith.errors import ModelError
from tunesmith.model.adapter_config import check_patterns, read_lora_config
from tunesmith.model.adapter_file import ADAPTER_WEIGHTS, check_unchanged, read_adapter
from tunesmith.model.fingerprint import is_fingerprint_of
from tunesmith.model.headers import few
from tunesmith.model.internals import names_taken_as_they_are
from tunesmith.model.new_tokens import make_room, num_embeddings, rows_wanted
from tunesmith.model.packed import parameter_names
from tunesmith.model.parameters import ends_in
from tunesmith.model.parts import keep_to_language
from tunesmith.model.placing import drop_out, prepare_for_peft
from tunesmith.model.precision import mutates_base
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.notices import notify

_IS_A = re.compile(r"lora_(?:embedding_)?A(?:$|\.)")
_INITIALS = re.compile(r"gaussian|orthogonal|olora|pissa|pissa_niter_[1-9]\d*")


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, without what holds its adapter."""
    wrapper: Any = model
    base: PreTrainedModel = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else wrapper
    return base


def lora_config(section: AdapterSection) -> LoraConfig:
    """The settings as PEFT takes them.

    Raises:
        ModelError: ``init_lora_weights`` names an initialisation that needs more than settings, or that nobody knows.
    """
    initial = section.init_lora_weights
    if isinstance(initial, str) and not _INITIALS.fullmatch(initial):
        raise ModelError(
            f"init_lora_weights {initial!r} is not one that can be used here",
            remedy="choose true, gaussian, orthogonal, pissa, pissa_niter_<steps> or olora",
        )
    whole = section.lora_alpha == int(section.lora_alpha)
    # PEFT takes no layers beside its own all-linear, which is only a word of ours by then
    some_layers = section.target_modules == "all-linear" and section.layers_to_transform is not None
    try:
        return LoraConfig(
            task_type=section.task_type,
            r=section.lora_r,
            lora_alpha=int(section.lora_alpha) if whole else section.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=section.lora_dropout,
            target_modules=["all-linear"] if some_layers else section.target_modules,
            exclude_modules=section.exclude_modules,
            rank_pattern=dict(section.rank_pattern),
            alpha_pattern=dict(section.alpha_pattern),
            modules_to_save=section.modules_to_save,
            bias=section.bias,
            fan_in_fan_out=section.fan_in_fan_out,
            use_rslora=section.use_rslora,
            use_dora=section.use_dora,
            init_lora_weights=initial,  # type: ignore[arg-type]
            layers_pattern=section.layers_pattern,
            layers_to_transform=section.layers_to_transform,
            target_parameters=section.target_parameters,
        )
    except ValueError as error:
        raise ModelError(f"the adapter's settings contradict each other ({error})") from error


def linear_module_names(model: torch.nn.Module) -> list[str]:
    """Last parts of the names of all layers that can carry an adapter, in the model's order."""
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return list(
        dict.fromkeys(name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, kinds))
    )


def check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """Refuse an adapter of which a part would end nowhere.

    Raises:
        ModelError: a name in ``target_modules`` or ``modules_to_save``, or a layer index, matches nothing; an adapter
            is asked for the output head, which training computes past its adapter; or the initial values need weights
            that are not quantized.
    """
    names = [name for name, _ in model.named_modules()]
    parameters = [name for name in parameter_names(model) if _covers(config.target_parameters, name)]
    check_patterns(config, names + parameters)
    targets = [] if isinstance(config.target_modules, str) else sorted(config.target_modules or ())
    _check_every_pattern(config, names, parameters)
    for setting, wanted in (("target_modules", targets), ("modules_to_save", config.modules_to_save or [])):
        lost = [target for target in wanted if not any(ends_in(name, target) for name in names)]
        if lost:
            raise ModelError(
                f"{setting}: {', '.join(lost)} {'is' if len(lost) == 1 else 'are'} not in this model",
                remedy=f"the model's layers are {', '.join(linear_module_names(model))}",
            )
    head = model.get_output_embeddings()
    head_names = [name for name, part in model.named_modules() if part is head and head is not None]
    if any(_is_target(name, config) for name in head_names):
        raise ModelError(
            f"target_modules: the output head ({head_names[0]}) cannot carry an adapter in training",
            remedy="leave it out, or train it whole with modules_to_save",
        )
    if mutates_base(config.init_lora_weights) and getattr(model, "is_quantized", False):
        raise ModelError(
            f"init_lora_weights {config.init_lora_weights} takes its values out of the weights, which are quantized",
            remedy="switch the quantization off, or set init_lora_weights true",
        )


def _is_target(name: str, config: LoraConfig) -> bool:
    """Whether the settings give the module an adapter; ``all-linear`` leaves the head out by itself."""
    if _covers(config.exclude_modules, name):
        return False
    return config.target_modules != "all-linear" and _covers(config.target_modules, name)


def _covers(wanted: str | Collection[str] | None, name: str) -> bool:
    """Whether a regular expression matches the whole name, or a list holds its end."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(ends_in(name, target) for target in wanted or ())


def _check_every_pattern(config: LoraConfig, names: list[str], parameters: list[str]) -> None:
    """Refuse what PEFT would pass over in silence: an expression or a pattern of no module, an exclusion of nothing.

    Args:
        names: of the modules.
        parameters: of bare parameters that carry an adapter, to which ranks and alphas apply as well.
    """
    expressions = {"target_modules": config.target_modules, "exclude_modules": config.exclude_modules}
    lost = [
        (setting, wanted)
        for setting, wanted in expressions.items()
        if isinstance(wanted, str) and wanted != "all-linear" and not any(_covers(wanted, name) for name in names)
    ]
    if not isinstance(config.exclude_modules, str):
        given = sorted(config.exclude_modules or ())
        lost += [("exclude_modules", one) for one in given if not any(ends_in(name, one) for name in names)]
    for setting, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        ends = [re.compile(rf"(.*\.)?({key})") for key in pattern or {}]
        lost += [
            (setting, key)
            for key, end in zip(pattern or {}, ends, strict=True)
            if not any(end.fullmatch(name) for name in [*names, *parameters])
        ]
    if lost:
        setting, wanted = lost[0]
        raise ModelError(
            f"{setting}: {wanted!r} matches no module of this model", remedy=f"the model's layers are {few(names)}"
        )


def check_rank(model: PreTrainedModel, config: LoraConfig) -> None:
    """Refuse a rank beyond the greatest width of the model's layers, before anything of that size is allocated.

    Raises:
        ModelError: it names the rank.
    """
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    sizes = [parameter.shape for part in model.modules() if isinstance(part, kinds) for parameter in [part.weight]]
    widest = 2 * max((size for shape in sizes for size in shape), default=0)  # PiSSA's portable form has twice the rank
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if widest and rank > widest:
        raise ModelError(
            f"the adapter's rank {rank} is greater than any of the model's layers is wide",
            remedy="set a smaller lora_r",
        )


def attach_adapter(model: PreTrainedModel, config: LoraConfig, *, saved: bool = False) -> PeftModel:
    """Put a fresh adapter on a model; everything that is trained is held in float32, whatever the base is held in.

    A fresh adapter changes nothing (its B is zero), except that PiSSA and OLoRA move a part of the base into it.
    Linear layers that the configuration names by their weight (``target_parameters``) get the adapter of a layer, which
    has the same tensors; so dropout reaches them, and they may be quantized.

    Args:
        saved: the configuration is that of a saved adapter, and is taken as it is.

    Raises:
        ModelError: see ``check_targets``; or PEFT refuses the settings for this model.
    """
    if not saved:
        keep_to_language(model, config)
    check_targets(model, config)
    check_rank(model, config)
    dropout, named = prepare_for_peft(model, config)
    try:
        with names_taken_as_they_are():
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"the adapter does not fit the model ({error})") from error
    config.target_modules, config.target_parameters = named
    drop_out(adapted, dropout, config)
    _check_layers(adapted, config)
    _hold_trained_layers_in_float32(adapted)
    if mutates_base(config.init_lora_weights):
        holder: Any = adapted
        holder.initial_adapter = {name: tensor.clone() for name, tensor in adapter_tensors(adapted).items()}
    return adapted


def adapter_tensors(model: PeftModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names of its file, on the cpu."""
    tensors = get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def portable_tensors(model: PeftModel, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """Tensors and configuration of an adapter that goes onto the untouched base.

    PiSSA and OLoRA train on W - s B0 A0. What they learned, s (B A - B0 A0), is itself a low-rank adapter of twice the
    rank for W: A and A0 stacked, B and -B0 side by side. Other adapters are returned as they are.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    initial: dict[str, torch.Tensor] | None = getattr(model, "initial_adapter", None)
    if initial is None:
        return tensors, config
    portable = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith("lora_A.weight"):
            portable[name] = torch.cat([tensor, initial[name]], dim=0)
        elif name.endswith("lora_B.weight"):
            portable[name] = torch.cat([tensor, -initial[name]], dim=1)
    values = config.to_dict()
    factor = 2**0.5 if config.use_rslora else 2  # keeps alpha / r, or alpha / sqrt(r), what it was
    values |= {"init_lora_weights": True, "r": 2 * config.r, "lora_alpha": config.lora_alpha * factor}
    values["rank_pattern"] = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    values["alpha_pattern"] = {name: alpha * factor for name, alpha in (config.alpha_pattern or {}).items()}
    return portable, LoraConfig(
        **{key: value for key, value in values.items() if key in LoraConfig.__dataclass_fields__}
    )


def trained_tensors(model: PeftModel, portable: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The way back from ``portable_tensors``, for a model that goes on training: A and B alone.

    Args:
        model: a model with a fresh adapter that took its start out of the base.
        portable: the tensors of a saved one.
        where: its folder.

    Raises:
        ModelError: the saved adapter began with other values, so that what is left of the base differs too.
    """
    initial: dict[str, torch.Tensor] = model.initial_adapter
    trained = dict(portable)
    for name, tensor in portable.items():
        rank_axis = 0 if name.endswith("lora_A.weight") else 1
        if not name.endswith(("lora_A.weight", "lora_B.weight")):
            continue
        began = initial[name] if rank_axis == 0 else -initial[name]
        half = began.shape[rank_axis]
        trained[name] = tensor.narrow(rank_axis, 0, half).contiguous()
        if not torch.equal(tensor.narrow(rank_axis, half, tensor.shape[rank_axis] - half), began):
            raise ModelError(
                f"{name} began with other values than this machine takes out of the base for init_lora_weights",
                where=where,
                remedy="continue with the settings, libraries and kind of device that the checkpoint was written with",
            )
    return trained


def load_adapter_strictly(
    model: PreTrainedModel, folder: Path, base: Path | None, recorded_checksum: str | None = None
) -> PeftModel:
    """Put a saved adapter on its base, frozen and in evaluation mode; every tensor must be there, and no other.

    A base on the meta device gets the adapter's weights alone.

    Args:
        base: folder of the base's files, whose fingerprint is compared; None skips the comparison.
        recorded_checksum: what the run's record says of this adapter, where there is one.

    Raises:
        ModelError: tensors are missing, unexpected, of another shape, not finite or not those that were saved, or the
            adapter belongs to another base.
    """
    path = folder / ADAPTER_WEIGHTS
    file = read_adapter(folder)
    config = read_lora_config(folder)
    _compare_ranks(file.tensors, config, path)
    if file.base_fingerprint is None:
        notify(f"{folder}: the adapter does not say which base it was trained on; only names and shapes are compared")
    elif base is not None and not is_fingerprint_of(file.base_fingerprint, base):
        raise ModelError(
            "the adapter was trained on another base (fingerprints differ)",
            where=str(folder),
            remedy=f"give the base that {ADAPTER_CONFIG} names, in the revision that was trained",
        )
    config.inference_mode = False  # so that what was trained whole is held in float32 here as it was there
    make_room(model, rows_wanted(config, num_embeddings(model)))
    adapted = attach_adapter(model, config, saved=True)
    _compare(file.tensors, get_peft_model_state_dict(adapted, save_embedding_layers=False), path)
    check_unchanged(file, folder, recorded_checksum)
    if model.device.type == "meta":
        _make_room(adapted)
    set_peft_model_state_dict(adapted, file.tensors)
    see_that_all_arrived(adapted, file.tensors, path)
    for parameter in adapted.parameters():
        parameter.requires_grad = False
    return adapted.eval()


@torch.no_grad()
def see_that_all_arrived(adapted: PeftModel, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put in place what PEFT lost: it renames an adapter's tensors as the base's files are renamed, and where such a
    pattern also fits the model's own names (Laguna's shared experts), it finds no place for them and does not say so.

    Raises:
        ModelError: a tensor cannot be put in place.
    """
    for name, place in _differing(adapted, tensors):
        place.copy_(tensors[name])
    lost = sorted(name for name, _ in _differing(adapted, tensors))
    if lost:
        raise ModelError(
            f"{len(lost)} of the adapter's tensors found no place in the model ({few(lost)})",
            where=str(path),
            remedy="use another version of peft or transformers",
        )


def _differing(adapted: PeftModel, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and places in the model of tensors that it does not hold as they are."""
    for name, held in get_peft_model_state_dict(adapted, save_embedding_layers=False).items():
        if name in tensors and not torch.equal(held, tensors[name].to(held)):
            yield name, held


def _make_room(adapted: PeftModel) -> None:
    """Give what belongs to the adapter memory on the cpu, beside a base that has none."""
    for module in adapted.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))


def _compare_ranks(tensors: Mapping[str, torch.Tensor], config: LoraConfig, path: Path) -> None:
    """A rank that no tensor has would be allocated before shapes are compared."""
    held = {tensor.shape[0] for name, tensor in tensors.items() if _IS_A.search(name) and tensor.dim()}
    wanted = {*(config.rank_pattern or {}).values()} or {config.r}
    lost = sorted(rank for rank in wanted if rank > max(held, default=0))
    if held and lost:
        raise ModelError(
            f"{ADAPTER_CONFIG} wants rank {lost[-1]}, and the tensors have {', '.join(map(str, sorted(held)))}",
            where=str(path),
        )


def _hold_trained_layers_in_float32(model: torch.nn.Module) -> None:
    """Trained weights, and the frozen ones of the same layer: a bias in another type than its weight cannot be used."""
    for layer in model.modules():
        own = list(layer.parameters(recurse=False))
        if any(parameter.requires_grad for parameter in own):
            for parameter in own:
                if parameter.is_floating_point():
                    parameter.data = parameter.data.float()


def _check_layers(adapted: PeftModel, config: LoraConfig) -> None:
    if config.layers_to_transform is None:
        return
    wanted = [config.layers_to_transform] if isinstance(config.layers_to_transform, int) else config.layers_to_transform
    tuner: Any = adapted.base_model
    found = {int(part) for name in tuner.targeted_module_names for part in name.split(".") if part.isdigit()}
    lost = sorted(set(wanted) - found)
    if lost:
        raise ModelError(
            f"layers_to_transform: the model has no layer {', '.join(map(str, lost))}",
            remedy="layers are counted from 0",
        )


def _compare(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({few(names)})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ModelError(
            f"the adapter's tensors are not those its configuration describes: {', '.join(parts)}",
            where=str(path),
            remedy="save the adapter again, or use another copy",
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)}, the model needs {tuple(expected[name].shape)}",
                where=str(path),
            )
        if not tensor.is_floating_point():
            raise ModelError(f"{name} is stored as {tensor.dtype}, no floating-point numbers", where=str(path))
        if not torch.isfinite(tensor.float()).all():
            raise ModelError(f"{name} holds values that are not finite", where=str(path))
