"""The model of a run, ready to train; and the model of a finished run, ready to answer.

It trains nothing and writes nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tunesmith.config.draft import DEFAULT
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.config.schema import RunConfig
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.errors import ModelError
from tunesmith.model import source
from tunesmith.model.adapters import (
    ADAPTER_CONFIG,
    attach_adapter,
    base_of,
    load_adapter_strictly,
    lora_config,
    read_lora_config,
)
from tunesmith.model.attention import choose_attention
from tunesmith.model.fingerprint import fingerprint
from tunesmith.model.internals import supports_sdpa
from tunesmith.model.plugins import model_class
from tunesmith.model.precision import Precision, align_types, choose_precision, possible_here, weights_dtype
from tunesmith.model.quantize import is_quantized, keep_one_4bit_kernel, quantization_config

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


def load_model(resolved: Resolved, precision: Precision, strategy: Strategy = ALONE) -> PreTrainedModel | PeftModel:
    """The model of a run: base, quantization, adapter, checkpointing, in this order.

    A model class of an installed package (``model.model_class``) does all of that itself.

    Args:
        strategy: how several processes will share it.

    Raises:
        ModelError: the model is not there, does not fit the settings or the machine.
        UnsafeError: it would run code, or open a pickle, that nobody allowed.
    """
    config = resolved.config
    if config.model.model_class is not None:
        model: PreTrainedModel | PeftModel = model_class(config.model.model_class)(resolved, precision)
        return model
    model = load_base(resolved, precision, strategy=strategy)
    if config.adapter.use_lora:
        model = attach_adapter(model, lora_config(config.adapter))
    if config.training.gradient_checkpointing:
        enable_checkpointing(model)
    align_types(model)
    model.config.use_cache = False  # a cache of keys and values is of no use when nothing is generated
    return model


def load_base(
    resolved: Resolved, precision: Precision, dtype: torch.dtype | None = None, strategy: Strategy = ALONE
) -> PreTrainedModel:
    """The base alone: on its devices, in its dtype or quantized, and frozen when it is quantized.

    Args:
        dtype: format of unquantized weights, where it is not that of training.
        strategy: how several processes will share it.
    """
    section = resolved.config.model
    located = source.locate(section.model_name_or_path, section.revision)
    keywords = source.loading_keywords(section, located)
    config = _open(AutoConfig.from_pretrained, located, section.model_name_or_path, keywords)
    check_not_quantized(config, section.model_name_or_path)
    model: PreTrainedModel = _open(
        AutoModelForCausalLM.from_pretrained,
        located,
        section.model_name_or_path,
        keywords
        | {
            "config": config,
            "dtype": dtype or weights_dtype(resolved, precision),
            "device_map": placement(resolved, strategy),
            "attn_implementation": choose_attention(resolved, precision, supports_sdpa=supports_sdpa(config)),
            "quantization_config": quantization_config(
                resolved.config.quantization, precision, spread=strategy.name == "fsdp2"
            ),
            "use_safetensors": True,
        },
    )
    _check_placed(model)
    if is_quantized(resolved.config.quantization):
        keep_one_4bit_kernel(model)
        # Norms, embeddings and head become float32, and everything is frozen; checkpointing is switched on elsewhere.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


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


def trainable_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Number of trained weights and of all weights; packed 4-bit weights count as what they stand for."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else int(torch.Size(state.shape).numel())
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def placement(resolved: Resolved, strategy: Strategy = ALONE) -> dict[str, Any] | str | None:
    """Where the weights go, as the library's ``device_map``.

    One process of several takes its own device; a single process takes ``gpu_id`` or the device in ``device_map``; else
    the weights are spread over all visible CUDA devices, or stay on the cpu where there is none.

    Raises:
        ModelError: a device was asked for that is not there.
    """
    config = resolved.config
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if strategy.name != "ddp":
        # who spreads weights places them; quantized ones are made on their device, together with their scales
        if not (num_devices and is_quantized(config.quantization)):
            return None
        return {"": int(os.environ.get("LOCAL_RANK", "0"))}
    if config.model.device_map != "auto":
        return _single_device(config.model.device_map, num_devices, resolved.origins["model.device_map"])
    if config.launch.gpu_id is not None and (num_devices or resolved.explicit("launch.gpu_id")):
        index = visible_index(config.launch.gpu_id)
        return _single_device(f"cuda:{index}", num_devices, resolved.origins["launch.gpu_id"])
    if not num_devices:
        return None
    if "LOCAL_RANK" in os.environ:
        return {"": int(os.environ["LOCAL_RANK"])}
    return {"": 0} if num_devices == 1 else "auto"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """How the model of a finished run, or any model, is to be loaded.

    Attributes:
        folder: where it is; a hub name is no folder.
        is_adapter: whether it is an adapter on a base.
        resolved: its settings; the section model names the base (or the model itself).
        precision: format of its arithmetic on this machine.
        weight_dtype: format of its unquantized weights.
        checksum: what the run's record says of the adapter, where it says something.
    """

    folder: Path
    is_adapter: bool
    resolved: Resolved
    precision: Precision
    weight_dtype: torch.dtype
    checksum: str | None

    @property
    def tokenizer_folder(self) -> str:
        """Where its tokenizer is."""
        return _tokenizer_folder(self.folder, self.resolved.config)

    def base_fingerprint(self) -> str:
        """The fingerprint of the base's files."""
        section = self.resolved.config.model
        located = source.locate(section.model_name_or_path, section.revision)
        return fingerprint(source.local_folder(located, section.revision))


def model_spec(
    name: str | Path,
    *,
    base: str | None = None,
    device_map: str | None = None,
    quantized: bool = True,
    trained: bool = True,
) -> ModelSpec:
    """Read how a model was trained and decide how it is loaded here; arguments are those of ``load_for_inference``.

    Raises:
        ModelError: the record cannot be read, or nobody names the adapter's base.
    """
    folder = Path(name)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    record = _record(folder)
    settings = dict(record.get("settings", {}))
    if is_adapter and base is None and not settings:
        base = read_lora_config(folder).base_model_name_or_path
    if not is_adapter and trained:
        base = str(name)
        settings |= {"model.tokenizer_name_or_path": None, "adapter.use_lora": False, "model.revision": None}
    if base is not None:
        settings["model.model_name_or_path"] = base
    if not settings.get("model.model_name_or_path"):
        raise ModelError("the adapter does not name its base", where=str(name), remedy="give the base")
    settings |= {"model.device_map": device_map} if device_map else {}
    # one process answers, however many have trained
    settings |= dict.fromkeys(("launch.strategy", "launch.deepspeed", "launch.accelerate_config"))
    if not torch.cuda.is_available() and device_map is None:
        settings |= {"model.device_map": "auto", "launch.gpu_id": None}  # the run's device is not on this machine
    if not quantized or (trained and not is_adapter):
        settings |= {"quantization.load_in_4bit": False, "quantization.load_in_8bit": False}
    # Evaluation may stand on another machine than training did: what was written for training yields here, aloud.
    resolved = from_values(settings, dict.fromkeys(settings, f"{DEFAULT} of the run"))
    intended = _trained_precision(record) or choose_precision(resolved)
    precision = possible_here(intended, resolved)
    weight_dtype = weights_dtype(resolved, intended) if record else precision.torch_dtype
    return ModelSpec(
        folder, is_adapter and trained, resolved, precision, weight_dtype, _recorded_checksum(record, folder)
    )


def load_for_inference(
    name: str | Path,
    *,
    base: str | None = None,
    device_map: str | None = None,
    quantized: bool = True,
    trained: bool = True,
) -> Inference:
    """A finished run, one of its checkpoints, an adapter, or any model, as it was trained.

    A run folder says in ``run.json`` on which base, in which bits and in which precision it was trained; a precision
    that this machine lacks is replaced, which is said. An adapter must fit its base tensor by tensor, and the base must
    be the one it was trained on.

    Args:
        name: run folder, checkpoint folder, adapter folder, model folder, ``nano-mistral`` or hub name.
        base: another place of the adapter's base.
        device_map: another placement than the run's.
        quantized: false loads the base without the run's quantization.
        trained: false loads the model of a run or an adapter as it was before training.

    Raises:
        ModelError: parts are missing, or the adapter does not belong to the base, or was changed.
        UnsafeError: something would run code, or open a pickle.
    """
    return load_from_spec(model_spec(name, base=base, device_map=device_map, quantized=quantized, trained=trained))


def load_from_spec(how: ModelSpec) -> Inference:
    """Load what ``model_spec`` found; see ``load_for_inference``."""
    resolved, precision = how.resolved, how.precision
    base = load_base(resolved, precision, how.weight_dtype)
    if precision.dtype == "float32" and not is_quantized(resolved.config.quantization):
        base = base.float()  # exact; weights that training held in 16 bits are multiplied in 32
    model: PreTrainedModel | PeftModel = base
    if how.is_adapter:
        model = load_adapter_strictly(base, how.folder, how.base_fingerprint(), how.checksum)
    for parameter in model.parameters():
        parameter.requires_grad = False
    align_types(model)
    return Inference(model.eval(), precision, resolved, how.tokenizer_folder, how.weight_dtype)


def visible_index(gpu_id: int) -> int:
    """torch's number of a GPU: the command line hides all others, and the one that is left is its first."""
    return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == str(gpu_id) else gpu_id


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


def check_not_quantized(config: PreTrainedConfig, name: str) -> None:
    """Refuse a base whose file is quantized already."""
    if getattr(config, "quantization_config", None):
        raise ModelError("was saved in a quantized format already", where=name, remedy="name its unquantized original")


def _check_placed(model: PreTrainedModel) -> None:
    places = set(getattr(model, "hf_device_map", {}).values())
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise ModelError(
            "the model does not fit into the visible accelerators",
            remedy="quantize it (load_in_4bit) or show more devices",
        )


def _single_device(text: str, num_devices: int, origin: str) -> dict[str, Any] | None:
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ModelError(f"{text!r} names no device", where=origin, remedy="give auto, cpu or cuda:0") from error
    if device.type == "cpu":
        return {"": "cpu"} if num_devices else None
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise ModelError(
            f"{text} was asked for, and the number of visible CUDA devices is {num_devices}",
            where=origin,
            remedy="choose a visible device, or leave it to auto",
        )
    return {"": device.index or 0 if device.type == "cuda" else text}


def _record(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run folder, or of the run that a checkpoint folder lies in; empty where there is none."""
    for home in (folder, folder.absolute().parent) if folder.is_dir() else ():
        path = home / RECORD
        if path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                return {**record, "settings": dict(record["settings"])}
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"the run's record cannot be read ({error})", where=str(path)) from error
    return {}


def _recorded_checksum(record: dict[str, Any], folder: Path) -> str | None:
    """The checksum in a record of the adapter that a run saved at its end; a checkpoint's adapter has none there."""
    adapter = record.get("adapter", {})
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
