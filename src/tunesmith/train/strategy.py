"""Sharing a run's work among processes: files of DeepSpeed and accelerate held against the settings, weights gathered.

Which strategy is meant stands in ``config/strategy.py``. The trainer hands DeepSpeed's file on, where ``auto`` values
follow the run's settings.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import Strategy, at, chosen, mixed_precision, read_accelerate
from tunesmith.errors import ConfigError, ModelError
from tunesmith.model.adapters import base_of
from tunesmith.model.precision import Precision
from tunesmith.train.processes import is_main_process

FOLLOWING: dict[str, str] = {
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer.params.lr": "training.learning_rate",
    "optimizer.params.weight_decay": "training.weight_decay",
    "optimizer.params.eps": "training.adam_epsilon",
    "scheduler.params.warmup_max_lr": "training.learning_rate",
}
"""Keys of a DeepSpeed file that say again what a setting says."""

SCHEDULERS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""DeepSpeed's schedulers and the settings of the same shape."""


def choose_strategy(resolved: Resolved, num_processes: int) -> Strategy:
    """The run's strategy, once nothing speaks against it; before anything is loaded.

    Args:
        resolved: the run's configuration.
        num_processes: processes of the run, on all machines.

    Raises:
        ConfigError: files of DeepSpeed or accelerate are missing, or say something else than the run's settings; or the
            processes are not as many as somebody meant.
        ModelError: DeepSpeed is not installed.
    """
    strategy = chosen(resolved)
    if strategy.uses_deepspeed:
        _check_agreement(strategy.deepspeed, resolved, strategy.origin, num_processes)
        if importlib.util.find_spec("deepspeed") is None:
            raise ModelError(
                "DeepSpeed is not installed", where=strategy.origin, remedy="pip install 'tunesmith[deepspeed]'"
            )
    _check_processes(resolved, strategy, num_processes)
    return strategy


def _check_processes(resolved: Resolved, strategy: Strategy, number: int) -> None:
    """Refuse to train with another number of processes than was meant: an accelerate file names another, or one process
    has nobody to spread its weights to."""
    file = resolved.config.launch.accelerate_config
    wanted = None
    if file is not None:
        wanted = read_accelerate(file, resolved.origins["launch.accelerate_config"]).get("num_processes")
    if wanted not in (None, number):
        raise ConfigError(
            f"num_processes is {wanted}, and this run has {number}",
            where=file,
            remedy=f"start it with --num_processes {wanted}, or by accelerate launch --config_file {file}",
        )
    if strategy.name == "fsdp2" and number == 1:
        raise ConfigError(
            "fsdp2 spreads weights over processes, and there is one",
            where=strategy.origin,
            remedy="give --num_processes, or leave the strategy out",
        )


def claim_deepspeed_fields() -> None:
    """Take the DeepSpeed fields of ``accelerate launch`` out of the environment: the strategy holds them now.

    accelerate refuses to see them beside a whole configuration.
    """
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)


def _check_agreement(content: dict[str, Any], resolved: Resolved, path: str, num_processes: int) -> None:
    ours = {key: (setting, resolved.values()[setting]) for key, setting in FOLLOWING.items()}
    training = resolved.config.training
    rows = training.per_device_train_batch_size * num_processes
    accumulation = training.gradient_accumulation_steps
    if training.global_batch_size is not None:
        accumulation = training.global_batch_size // rows
        ours["gradient_accumulation_steps"] = ("number of passes by training.global_batch_size", accumulation)
    ours["train_batch_size"] = ("rows of a step over all processes", rows * accumulation)
    ours["optimizer.params.betas"] = ("Adam betas", [training.adam_beta1, training.adam_beta2])
    for key, (what, value) in ours.items():
        written = at(content, key)
        if written not in (None, "auto", value):
            raise ConfigError(
                f"{key} is {written!r}, and the run's {what} is {value!r}",
                where=path,
                remedy='write "auto", which follows the run\'s settings',
            )
    kind = at(content, "scheduler.type")
    if kind is not None and SCHEDULERS.get(kind) != training.lr_scheduler_type:
        raise ConfigError(
            f"scheduler.type is {kind!r}, and the run's training.lr_scheduler_type is {training.lr_scheduler_type!r}",
            where=path,
            remedy="leave the section scheduler out, and the run's own is used",
        )
    ratio = resolved.config.adapter.loraplus_lr_ratio
    if content.get("optimizer") and (ratio is not None or resolved.explicit("training.optim")):
        what = "adapter.loraplus_lr_ratio" if ratio is not None else "training.optim"
        raise ConfigError(
            f"the section optimizer replaces the run's, and {what} asks for another",
            where=path,
            remedy=f"leave the section optimizer or {what} out",
        )


def check_precision(resolved: Resolved, strategy: Strategy, precision: Precision) -> None:
    """Refuse a DeepSpeed file, or settings of accelerate, that compute in another format than the run.

    Raises:
        ConfigError: they do.
    """
    run = f"the run's arithmetic is {precision.dtype} ({precision.reason})"
    for key, value in (("bf16.enabled", precision.bf16), ("fp16.enabled", precision.fp16)):
        written = at(strategy.deepspeed, key)
        if written not in (None, "auto", value):
            raise ConfigError(f"{key} is {written!r}, and {run}", where=strategy.origin, remedy='write "auto"')
    told = mixed_precision(resolved)
    if told is not None and told[0] != {"bfloat16": "bf16", "float16": "fp16"}.get(precision.dtype):
        raise ConfigError(
            f"mixed_precision is {told[0]}, and {run}", where=told[1], remedy=f"set {told[0]} true as well"
        )


def check_tied(strategy: Strategy, model: PreTrainedModel | PeftModel) -> None:
    """Refuse to spread an output head that is the embedding and is to be trained as a copy of its own.

    Raises:
        ModelError: fsdp2 keeps equal weights in one group, and the copy's layer is in another.
    """
    if strategy.name != "fsdp2" or not isinstance(model, PeftModel) or not model.config.tie_word_embeddings:
        return
    base = base_of(model)
    if any(hasattr(part, "modules_to_save") for part in (base.get_input_embeddings(), base.get_output_embeddings())):
        raise ModelError(
            "fsdp2 cannot spread a model whose output head is its embedding when modules_to_save names one of them",
            remedy="leave it out of modules_to_save, or take the strategy ddp, zero2 or zero3",
        )


def gathered_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Weights that ZeRO stage 3 or FSDP2 spread over the processes, whole and on the cpu; None where none are spread.

    Of a model with an adapter only what is trained is gathered. Every process must call this; only the main process
    gets tensors.
    """
    if not any(_is_spread(parameter) for parameter in model.parameters()):
        return None
    adapter_only = hasattr(model, "peft_config")
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if adapter_only and not parameter.requires_grad:
            continue
        with _whole(parameter) as tensor:
            if is_main_process():
                whole[name] = tensor.detach().to("cpu", copy=True)
    if is_main_process() and not adapter_only:
        buffers = {name: tensor for name, tensor in model.state_dict().items() if not _is_spread(tensor)}
        whole |= {name: buffer for name, buffer in buffers.items() if name not in whole and buffer.numel()}
    return whole


def release_zero3() -> None:
    """After training: whoever loads a model in this process gets it whole again, and not spread by ZeRO stage 3."""
    unset_hf_deepspeed_config()


def _is_spread(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id") or isinstance(parameter, DTensor)


@contextmanager
def _whole(parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weight with all its pieces, as long as the context lasts."""
    if isinstance(parameter, DTensor):
        yield parameter.full_tensor()
    elif hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            yield parameter
    else:
        yield parameter
