"""Files of torchtune: groups with a ``_component_``, which is a word here and is never imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.config.coming_from.tool import NotHere, Tool, Written, gradient_checkpointing

_LAYERS = {"output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_MLP = ["gate_proj", "up_proj", "down_proj"]
_OPTIMIZERS = {"AdamW": "adamw_torch", "AdamW8bit": "adamw_bnb_8bit", "PagedAdamW8bit": "paged_adamw_8bit",
               "PagedAdamW": "paged_adamw_32bit", "SGD": "sgd", "Adafactor": "adafactor"}  # fmt: skip
_DATASETS = {
    "alpaca_dataset": ("alpaca", "tatsu-lab/alpaca"), "alpaca_cleaned_dataset": ("alpaca", "yahma/alpaca-cleaned"),
    "chat_dataset": ("auto", None), "instruct_dataset": ("auto", None), "text_completion_dataset": ("text", None),
}  # fmt: skip


def _recognises(tree: Mapping[str, Any]) -> bool:
    groups = [value for value in tree.values() if isinstance(value, dict)]
    return sum("_component_" in group for group in groups) >= 2


def _last(component: Any) -> str:
    return str(component).rpartition(".")[2]


def _model(value: Any, written: Written) -> Mapping[str, Any]:
    name = _last(value)
    if not name.startswith(("lora_", "qlora_")):
        return {"use_lora": False}
    wanted = [_LAYERS.get(one, one) for one in written.get("model.lora_attn_modules") or ()]
    wanted += _MLP if written.get("model.apply_lora_to_mlp") else []
    said: dict[str, Any] = {"use_lora": True} | ({"load_in_4bit": True} if name.startswith("qlora_") else {})
    return said | ({"target_modules": wanted} if wanted else {})


def _dataset(value: Any, written: Written) -> Mapping[str, Any]:
    name = _last(value)
    if name not in _DATASETS:
        raise NotHere(f"rows of {name} are not known; train_data, format and columns describe yours")
    form, source = _DATASETS[name]
    files = written.get("dataset.data_files")
    given = files or written.get("dataset.source") or source
    said: dict[str, Any] = {"train_data": given} if given else {}
    everything = name in (
        "alpaca_dataset",
        "alpaca_cleaned_dataset",
        "text_completion_dataset",
    )  # unless told otherwise
    trains_input = written.get("dataset.train_on_input", everything)
    return said | {"format": form, "loss_on": "all" if trains_input else "completion"}


def _columns(value: Any, written: Written) -> Mapping[str, Any]:
    """Its map and ours go the same way: what the format reads -> the column's name in the file."""
    return {"columns": value}


def _optimizer(value: Any, written: Written) -> Mapping[str, Any]:
    name = _last(value)
    if name not in _OPTIMIZERS:
        raise NotHere(f"there is no optimizer {name} here; optim chooses one")
    fused = name == "AdamW" and written.get("optimizer.fused")
    return {"optim": "adamw_torch_fused" if fused else _OPTIMIZERS[name]}


def _betas(value: Any, written: Written) -> Mapping[str, Any]:
    return {"adam_beta1": value[0], "adam_beta2": value[1]}


def _schedule(value: Any, written: Written) -> Mapping[str, Any]:
    found = re.search(r"get_(\w+)_schedule", _last(value))
    if found is None:
        raise NotHere("lr_scheduler_type chooses a schedule")
    return {"lr_scheduler_type": found[1]}


def _dtype(value: Any, written: Written) -> Mapping[str, Any]:
    return {"bf16": value == "bf16", "fp16": value == "fp16"} | ({"dtype": "bfloat16"} if value == "bf16" else {})


def _device(value: Any, written: Written) -> Mapping[str, Any]:
    return {"device_map": "cpu"} if value == "cpu" else {}


def _logger(value: Any, written: Written) -> Mapping[str, Any]:
    known = {"WandBLogger": "wandb", "TensorBoardLogger": "tensorboard"}
    return {"report_to": [known[_last(value)]]} if _last(value) in known else {}


def _nothing(value: Any, written: Written) -> Mapping[str, Any]:
    """Said together with another key of its group."""
    return {}


def _shuffle(value: Any, written: Written) -> Mapping[str, Any]:
    if not value:
        raise NotHere("rows are drawn in the order of data_seed; streaming keeps that of the file")
    return {}


def _resume(value: Any, written: Written) -> Mapping[str, Any]:
    return {"resume_from_checkpoint": bool(value)}


_LOADS = NotHere("the model's own files say it")
_ONE_LOSS = NotHere("the loss is that of the trained tokens, computed in one place")
_NO_COMPILE = NotHere("batches have many shapes, each of which would be compiled")
_PLACE = NotHere("logs lie in the run folder")

TORCHTUNE = Tool(
    "torchtune",
    "torchtune",
    _recognises,
    {
        "model._component_": _model,
        "model.lora_attn_modules": _nothing,
        "model.apply_lora_to_mlp": _nothing,
        "model.apply_lora_to_output": lambda value, written: _refuse(value, "the output head carries no adapter"),
        "model.lora_rank": "lora_r",
        "model.lora_alpha": "lora_alpha",
        "model.lora_dropout": "lora_dropout",
        "model.use_dora": "use_dora",
        "tokenizer._component_": _nothing,
        "tokenizer.path": _LOADS,
        "tokenizer.merges_file": _LOADS,
        "tokenizer.max_seq_len": "max_length",
        "tokenizer.prompt_template": NotHere("template names one"),
        "checkpointer._component_": _nothing,
        "checkpointer.checkpoint_dir": "model_name_or_path",
        "checkpointer.checkpoint_files": _LOADS,
        "checkpointer.model_type": _LOADS,
        "checkpointer.recipe_checkpoint": NotHere("resume_from_checkpoint names a checkpoint, or latest"),
        "checkpointer.output_dir": lambda value, written: {} if written.get("output_dir") else {"output_dir": value},
        "checkpointer.safe_serialization": NotHere("weights are always safetensors"),
        "dataset._component_": _dataset,
        "dataset.source": _nothing,
        "dataset.data_files": _nothing,
        "dataset.train_on_input": _nothing,
        "dataset.packed": "use_packing",
        "dataset.split": "train_split",
        "dataset.column_map": _columns,
        "dataset.conversation_style": NotHere("the shape of chats is seen in the first row"),
        "dataset.conversation_column": lambda value, written: {"columns": {"messages": value}},
        "dataset.column": lambda value, written: {"columns": {"text": value}},
        "dataset.new_system_prompt": "instruction",
        "shuffle": _shuffle,
        "resume_from_checkpoint": _resume,
        "optimizer._component_": _optimizer,
        "optimizer.lr": "learning_rate",
        "optimizer.weight_decay": "weight_decay",
        "optimizer.betas": _betas,
        "optimizer.eps": "adam_epsilon",
        "optimizer.fused": _nothing,
        "optimizer_in_bwd": lambda value, written: _refuse(value, "the optimizer steps after the backward pass"),
        "lr_scheduler._component_": _schedule,
        "lr_scheduler.num_warmup_steps": "warmup_steps",
        "clip_grad_norm": "max_grad_norm",
        "loss": _ONE_LOSS,
        "compile": lambda value, written: _refuse(value, str(_NO_COMPILE)),
        "device": _device,
        "dtype": _dtype,
        "enable_activation_checkpointing": gradient_checkpointing,
        "enable_activation_offloading": lambda value, written: _refuse(value, "gradient_checkpointing saves memory"),
        "log_every_n_steps": "logging_steps",
        "save_every_n_steps": "save_steps",
        "metric_logger._component_": _logger,
        "metric_logger.project": "wandb_project",
        "metric_logger.log_dir": _PLACE,
        "log_level": _nothing,
        "log_peak_memory_stats": _nothing,
        "profiler": lambda value, written: {},
        "max_steps_per_epoch": NotHere("max_steps ends the whole run"),
        "save_adapter_weights_only": NotHere("a run with an adapter saves the adapter"),
        "custom_sharded_layers": NotHere("strategy fsdp2 spreads the model"),
    },
    {
        "use_lora": False, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "num_train_epochs": 1,
        "per_device_train_batch_size": 1, "max_grad_norm": 0.0, "logging_steps": 1, "save_strategy": "epoch",
        "too_long": "truncate_completion", "lr_scheduler_type": "constant",
    },
    nested=frozenset(
        {"model", "tokenizer", "checkpointer", "dataset", "optimizer", "lr_scheduler", "metric_logger"}
    ),
)  # fmt: skip


def _refuse(value: Any, reason: str) -> Mapping[str, Any]:
    if value:
        raise NotHere(reason)
    return {}


def interpolated(tree: Any, whole: Any = None) -> Any:
    """The tree with ``${output_dir}`` and its like put in; what no key of the file is called stays."""
    whole = tree if whole is None else whole
    if isinstance(tree, dict):
        return {key: interpolated(value, whole) for key, value in tree.items()}
    if isinstance(tree, list):
        return [interpolated(value, whole) for value in tree]
    if not isinstance(tree, str):
        return tree
    return re.sub(r"\$\{([\w.]+)\}", lambda found: _value(found, whole), tree)


def _value(found: re.Match[str], whole: Any) -> str:
    for part in found[1].split("."):
        whole = whole.get(part) if isinstance(whole, dict) else None
    return str(whole) if isinstance(whole, str | int | float) else found[0]
