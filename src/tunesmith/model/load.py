"""The model of a run, ready to train; and the model of a finished run, ready to answer.

It trains nothing and writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.config.draft import DEFAULT
from tunesmith.config.recorded import in_place, problem_of
from tunesmith.config.resolve import NO_PERMISSIONS, Resolved, from_values
from tunesmith.config.schema import RunConfig
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.errors import ConfigError, ModelError
from tunesmith.model import source
from tunesmith.model.adapter_config import read_lora_config
from tunesmith.model.adapters import base_of, load_adapter_strictly, lora_config
from tunesmith.model.attention import choose_attention
from tunesmith.model.cache_setting import switch_cache_off
from tunesmith.model.device import Device, here, on_one, seen
from tunesmith.model.fresh import leave_out_silent, new_adapter
from tunesmith.model.internals import leave_weights_alone, opener_of, supports_sdpa, without_weights
from tunesmith.model.memory.shapes import skeleton, weight_bytes
from tunesmith.model.new_tokens import give_rows, trained_rows
from tunesmith.model.packed import packable, packing
from tunesmith.model.parts import freeze_beside_language
from tunesmith.model.plugins import model_class
from tunesmith.model.precision import (
    Precision,
    align_types,
    choose_precision,
    possible_here,
    tell_of_slow_bfloat16,
    weights_dtype,
)
from tunesmith.model.quantize import (
    check_promise,
    freeze_for_adapters,
    is_quantized,
    keep_one_4bit_kernel,
    quantization_config,
)
from tunesmith.model.roles import weights_of
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.model.spread import loading, loads_in_pieces, opens_files
from tunesmith.model.whole import judge, open_checked
from tunesmith.notices import notify

RECORD = "run.json"


@dataclass(frozen=True, slots=True)
class Inference:
    """A model that answers, with what is needed to use it as it was trained.

    Attributes:
        model: frozen, in evaluation mode.
        precision: format of its arithmetic; run it inside ``precision.autocast(model.device)``.
        resolved: the settings it was loaded by; those of its run, where there is one.
        tokenizer_folder: where its tokenizer is.
        weight_dtype: format in which its unquantized weights were loaded, which is that of training.
    """

    model: PreTrainedModel | PeftModel
    precision: Precision
    resolved: Resolved
    tokenizer_folder: str
    weight_dtype: torch.dtype = torch.float32


def load_model(
    resolved: Resolved,
    precision: Precision,
    device: Device,
    strategy: Strategy = ALONE,
    new_tokens: Sequence[int] = (),
) -> PreTrainedModel | PeftModel:
    """The model of a run: base, quantization, new tokens, adapter, checkpointing, in this order.

    A model class of an installed package (``model.model_class``) does all of that itself.

    Args:
        device: where the run computes.
        strategy: how several processes will share it.
        new_tokens: ids that get rows of their own, which are trained.

    Raises:
        ModelError: the model is not there, does not fit the settings or the machine.
        UnsafeError: it would run code, or open a pickle, that nobody allowed.
    """
    config = resolved.config
    if config.model.model_class is not None:
        model: PreTrainedModel | PeftModel = model_class(config.model.model_class)(resolved, precision)
        return on_device(model, device) if strategy.name == "ddp" else model
    model = load_base(resolved, precision, device, strategy=strategy)
    tell_of_slow_bfloat16(precision, device, model.num_parameters())
    if new_tokens:
        give_rows(model, new_tokens)
    beside = freeze_beside_language(model)
    if beside:
        notify(f"the run trains on text: {', '.join(beside)} stay as they are, and are saved with the model")
    if config.adapter.use_lora:
        adapter = lora_config(config.adapter)
        if new_tokens:
            trained_rows(model, adapter, new_tokens, spread=strategy.name in ("fsdp2", "zero3"))
        fresh = new_adapter(model, adapter, written=resolved.explicit("adapter.target_modules"))
        model = leave_out_silent(fresh, adapter, precision, torch.device(str(device)))
    if config.training.gradient_checkpointing:
        enable_checkpointing(model)
    align_types(model)
    switch_cache_off(model)
    return model


def load_base(
    resolved: Resolved,
    precision: Precision,
    device: Device,
    dtype: torch.dtype | None = None,
    strategy: Strategy = ALONE,
) -> PreTrainedModel:
    """The base alone: on its devices, in its dtype or quantized, and frozen when it is quantized.

    Args:
        device: where the run computes.
        dtype: format of unquantized weights, where it is not that of training.
        strategy: how several processes will share it.
    """
    section = resolved.config.model
    with loading(strategy, in_pieces=False):  # it builds the model as well, without weights
        found = open_checked(section)
    in_pieces = loads_in_pieces(resolved, strategy, int(os.environ.get("WORLD_SIZE", "1")))
    quantization = quantization_config(resolved.config.quantization, precision, spread=strategy.name == "fsdp2")
    keywords = found.keywords | {
        "config": found.config,
        "dtype": dtype or weights_dtype(resolved, precision),
        "device_map": {"": "meta"} if in_pieces and not opens_files(strategy) else device.device_map,
        "attn_implementation": choose_attention(resolved, precision, device, supports_sdpa=supports_sdpa(found.config)),
        "quantization_config": quantization,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    if quantization is not None:
        bare = without_weights(deepcopy(found.config), trust_remote_code=found.keywords["trust_remote_code"])
        weights = weights_of(bare)
        check_promise(resolved.config.quantization, weights, bare)
        if strategy.name == "fsdp2" and resolved.config.quantization.load_in_4bit and packable(weights, bare):
            raise ModelError(
                f"{type(bare).__name__} holds experts in one parameter, which cannot be spread in 4 bits",
                where=strategy.origin,
                remedy="set strategy ddp",
            )
    experts = packing() if quantization is not None else nullcontext()
    with loading(strategy, in_pieces=in_pieces), experts:
        model, info = _open(
            opener_of(found.config).from_pretrained, found.located, section.model_name_or_path, keywords
        )
    judge(info, section.model_name_or_path)
    _check_placed(model)
    leave_weights_alone(model)
    if is_quantized(resolved.config.quantization):
        keep_one_4bit_kernel(model)
        freeze_for_adapters(model)
    loaded: PreTrainedModel = model
    return loaded


def enable_checkpointing(model: PreTrainedModel | PeftModel) -> None:
    """Recompute activations in the backward pass, the way that keeps random numbers and autocast (non-reentrant).

    With frozen embeddings the inputs of the first layer would need no gradient; they are made to, so that adapters get
    theirs whatever the kind of checkpointing.
    """
    base = base_of(model)
    if not base.supports_gradient_checkpointing:
        raise ModelError(
            f"{type(base).__name__} has no gradient checkpointing", remedy="set gradient_checkpointing false"
        )
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()


def on_device(model: PreTrainedModel | PeftModel, device: Device) -> PreTrainedModel | PeftModel:
    """A model that somebody else made, moved to where the run computes; one that is spread stays as it is.

    Raises:
        ModelError: it lies elsewhere and cannot be moved.
    """
    wanted = torch.device(str(device))
    places = {parameter.device for parameter in model.parameters()}
    if len(places) > 1 or places <= {wanted}:
        return model
    mapped = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    if mapped or getattr(model, "quantization_method", None) is not None:
        raise ModelError(
            f"the model is on {', '.join(sorted(map(str, places)))}, the run computes on {wanted}, and it cannot be "
            "moved because it is quantized or laid over several devices",
            where="model.model_class",
            remedy="let its class load it there, or set device_map to where it is",
        )
    moved: Any = model.to(wanted)  # type: ignore[arg-type]  # the stub of a decorated method
    if hasattr(moved, "hf_device_map"):  # what the trainer goes by
        moved.hf_device_map = {"": wanted}
    return moved  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """How the model of a finished run, or any model, is to be loaded.

    Attributes:
        folder: where it is; a hub name is no folder.
        is_adapter: whether it is an adapter on a base.
        resolved: its settings; the section model names the base (or the model itself).
        precision: format of its arithmetic on this machine.
        device: where it answers.
        weight_dtype: format of its unquantized weights.
        checksum: what the run's record says of the adapter, where it says something.
    """

    folder: Path
    is_adapter: bool
    resolved: Resolved
    precision: Precision
    device: Device
    weight_dtype: torch.dtype
    checksum: str | None

    @property
    def tokenizer_folder(self) -> str:
        """Where its tokenizer is."""
        return _tokenizer_folder(self.folder, self.resolved.config)

    def base_folder(self) -> Path:
        """Where the base's files are; those of a hub model must have been fetched before."""
        section = self.resolved.config.model
        return source.local_folder(source.locate(section.model_name_or_path, section.revision), section.revision)


def model_spec(
    name: str | Path,
    *,
    base: str | None = None,
    device_map: str | None = None,
    quantized: bool = True,
    trained: bool = True,
    permissions: Mapping[str, Any] = NO_PERMISSIONS,
) -> ModelSpec:
    """Read how a model was trained and decide how it is loaded here; arguments are those of ``load_for_inference``.

    Raises:
        ModelError: the record cannot be read, or nobody names the adapter's base.
    """
    folder = Path(name)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    record = _record(folder)
    moved = base is not None
    settings = dict(record.get("settings", {}))
    if is_adapter and base is None and not settings:
        base = read_lora_config(folder).base_model_name_or_path
    if not is_adapter and trained:
        base = str(name)
        settings |= {"model.tokenizer_name_or_path": None, "adapter.use_lora": False, "model.revision": None}
    if base is not None:
        settings["model.model_name_or_path"] = base
    if not settings.get("model.model_name_or_path"):
        raise ModelError("the adapter does not name its base", where=str(name), remedy="--base_model PATH names it")
    if (is_adapter or not trained) and not moved:
        _check_base_is_there(folder, settings)
    # The run's device says nothing about this machine, and one process answers, however many have trained.
    settings |= {"model.device_map": device_map or "auto", "launch.gpu_id": None}
    settings |= dict.fromkeys(("launch.strategy", "launch.deepspeed", "launch.accelerate_config"))
    if not quantized or (trained and not is_adapter):
        settings |= {"quantization.load_in_4bit": False, "quantization.load_in_8bit": False}
    # Evaluation may stand on another machine than training did: what was written for training yields here, aloud.
    try:
        origins = dict.fromkeys(settings, f"{DEFAULT} of the run")
        resolved = from_values(settings, origins, permissions=permissions)
    except ConfigError as error:
        raise ModelError(f"the settings of its run cannot be used ({error})", where=str(name)) from error
    device = here(resolved)
    intended = _trained_precision(record) or choose_precision(resolved, device)
    precision = possible_here(intended, device)
    weight_dtype = weights_dtype(resolved, intended) if record else precision.torch_dtype
    return ModelSpec(
        folder, is_adapter and trained, resolved, precision, device, weight_dtype, _recorded_checksum(record, folder)
    )


def load_for_inference(
    name: str | Path,
    *,
    base: str | None = None,
    device_map: str | None = None,
    quantized: bool = True,
    trained: bool = True,
    permissions: Mapping[str, Any] = NO_PERMISSIONS,
) -> Inference:
    """A finished run, one of its checkpoints, an adapter, or any model, as it was trained.

    A run folder says in ``run.json`` on which base, in which bits and in which precision it was trained; a precision
    that this machine lacks is replaced, which is said. An adapter must fit its base tensor by tensor, and the base must
    be the one it was trained on.

    Args:
        name: run folder, checkpoint folder, adapter folder, model folder, ``nano-mistral`` or hub name.
        base: another place of the adapter's base.
        device_map: where it answers; the run's own device is not carried over. Unset, it is spread over several
            devices only where one does not hold it.
        quantized: false loads the base without the run's quantization.
        trained: false loads the model of a run or an adapter as it was before training.
        permissions: what today's command line permits, by path (see ``config/permissions.py``); a record gives none.

    Raises:
        ModelError: parts are missing, or the adapter does not belong to the base, or was changed.
        UnsafeError: something would run code, or open a pickle.
    """
    how = model_spec(
        name, base=base, device_map=device_map, quantized=quantized, trained=trained, permissions=permissions
    )
    return load_from_spec(how)


def load_from_spec(how: ModelSpec) -> Inference:
    """Load what ``model_spec`` found; see ``load_for_inference``."""
    resolved, precision = how.resolved, how.precision
    device = inference_device(resolved, precision, how.device, how.weight_dtype)
    base = load_base(resolved, precision, device, how.weight_dtype)
    if precision.dtype == "float32" and not is_quantized(resolved.config.quantization):
        base = base.float()  # exact; weights that training held in 16 bits are multiplied in 32
    model: PreTrainedModel | PeftModel = base
    if how.is_adapter:
        model = load_adapter_strictly(base, how.folder, how.base_folder(), how.checksum)
    for parameter in model.parameters():
        parameter.requires_grad = False
    align_types(model)
    return Inference(model.eval(), precision, resolved, how.tokenizer_folder, how.weight_dtype)


def inference_device(
    resolved: Resolved, precision: Precision, device: Device, dtype: torch.dtype | None = None
) -> Device:
    """The device of a model that only answers; its weights are counted where several devices could share them.

    Args:
        device: what ``device.choose`` says.
        dtype: format of its unquantized weights, where it is not that of training.
    """
    if not device.spread:
        return device
    exact = precision.dtype == "float32" and not is_quantized(resolved.config.quantization)
    number = weight_bytes(skeleton(resolved, precision, torch.float32 if exact else dtype), resolved)
    return on_one(device, seen(), number)


def _open(opener: Any, located: str, name: str, keywords: dict[str, Any]) -> Any:
    try:
        return opener(located, **keywords)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            "does not fit into the device's memory", where=name, remedy="quantize it (load_in_4bit)"
        ) from error
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the model cannot be loaded ({reason[:400]})", where=name) from error


def _check_placed(model: PreTrainedModel) -> None:
    places = set(getattr(model, "hf_device_map", {}).values())
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise ModelError(
            "the model does not fit into the visible accelerators",
            remedy="quantize it (load_in_4bit) or show more devices",
        )


def _record(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run folder, or of the run that a checkpoint folder lies in; empty where there is none."""
    for home in (folder, folder.absolute().parent) if folder.is_dir() else ():
        path = home / RECORD
        if path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ModelError(f"the run's record cannot be read ({error})", where=str(path)) from error
            problem = problem_of(record)
            if problem is not None:
                raise ModelError(f"the run's record cannot be used ({problem})", where=str(path))
            return dict(record) | {"settings": in_place(record["settings"], record, home)}
    return {}


def _check_base_is_there(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse what needs a base that is not where it was.

    Raises:
        ModelError: it is not there; with the option that says where it is.
    """
    name = settings["model.model_name_or_path"]
    if not isinstance(name, str) or Path(name).is_dir():
        return  # what is wrong with it otherwise is said where it is opened
    try:
        source.locate(name, settings.get("model.revision"))
    except ModelError as error:
        raise ModelError(
            f"its base model {name} cannot be found ({error.what})",
            where=str(folder),
            remedy="--base_model PATH says where it is now",
        ) from error


def _recorded_checksum(record: dict[str, Any], folder: Path) -> str | None:
    """The checksum in a record of the adapter that a run saved at its end; a checkpoint's adapter has none there."""
    adapter = record.get("adapter") or {}
    inside = "." if (folder / RECORD).is_file() else folder.name
    return adapter.get("checksum") if adapter.get("folder") == inside else None


def _trained_precision(record: dict[str, Any]) -> Precision | None:
    """The precision that a run chose on its own machine."""
    facts = record.get("model")
    dtype = facts.get("precision") if isinstance(facts, dict) else None
    return Precision(dtype, "as in training") if dtype in ("bfloat16", "float16", "float32") else None


def _tokenizer_folder(folder: Path, config: RunConfig) -> str:
    for home in (folder, folder.absolute().parent) if folder.is_dir() else ():
        if (home / "tokenizer_config.json").is_file():
            return str(home)
    section = config.model
    return section.tokenizer_name_or_path or section.model_name_or_path
