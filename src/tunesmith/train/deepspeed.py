"""What DeepSpeed needs that other runs do not: its file checked before anything is loaded, and spread weights gathered.

The trainer hands the file to DeepSpeed, where ``auto`` values follow the run's settings.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, ModelError
from tunesmith.train.processes import is_main_process, num_processes

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


def check(resolved: Resolved) -> None:
    """Refuse a DeepSpeed run that cannot work, before anything is loaded.

    Raises:
        ConfigError: the file is missing, no JSON object, or says something else than the run's settings.
        ModelError: DeepSpeed is not installed.
    """
    path = resolved.config.launch.deepspeed
    if path is None:
        return
    origin = resolved.origins["launch.deepspeed"]
    content = _read(path, origin)
    _check_agreement(content, resolved, path)
    if importlib.util.find_spec("deepspeed") is None:
        raise ModelError("DeepSpeed is not installed", where=origin, remedy="pip install 'tunesmith[deepspeed]'")


def _check_agreement(content: dict[str, Any], resolved: Resolved, path: str) -> None:
    ours = {key: (setting, resolved.values()[setting]) for key, setting in FOLLOWING.items()}
    training = resolved.config.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * num_processes()
    ours["train_batch_size"] = ("rows of a step over all processes", rows)
    for key, (what, value) in ours.items():
        written = _at(content, key)
        if written not in (None, "auto", value):
            raise ConfigError(
                f"{key} is {written!r}, and the run's {what} is {value!r}",
                where=path,
                remedy='write "auto", which follows the run\'s settings',
            )


def gathered_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Weights that ZeRO stage 3 spread over the processes, whole and on the cpu; None where none are spread.

    Of a model with an adapter only what is trained is gathered. Every process must call this; only the main process
    gets tensors.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return None
    from deepspeed.runtime.zero import GatheredParameters

    adapter_only = hasattr(model, "peft_config")
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if adapter_only and not parameter.requires_grad:
            continue
        with GatheredParameters([parameter]):
            if is_main_process():
                whole[name] = parameter.detach().to("cpu", copy=True)
    if is_main_process() and not adapter_only:
        whole |= {name: buffer for name, buffer in model.state_dict().items() if name not in whole and buffer.numel()}
    return whole


def _read(path: str, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        what = f"cannot read the DeepSpeed file {path}: {error.strerror or error}"
        raise ConfigError(what, where=origin) from error
    except ValueError as error:
        raise ConfigError(f"the DeepSpeed file is not valid JSON: {error}", where=path) from None
    if not isinstance(content, dict):
        raise ConfigError("the DeepSpeed file holds no JSON object", where=path)
    return content


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
