"""Files of TRL's command ``trl sft --config``: SFTConfig, ScriptArguments and ModelConfig side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.coming_from.tool import NotHere, Tool, Written, gradient_checkpointing


def _recognises(tree: Mapping[str, Any]) -> bool:
    plain = not any(isinstance(value, dict) for key, value in tree.items() if key in ("model", "training", "train"))
    return plain and "model_name_or_path" in tree and bool({"dataset_name", "use_peft", "output_dir"} & tree.keys())


def _config(value: Any, written: Written) -> Mapping[str, Any]:
    return {"subset": value}


def _padding_free(value: Any, written: Written) -> Mapping[str, Any]:
    return {"padding_free": bool(value)}


def _chat_template(value: Any, written: Written) -> Mapping[str, Any]:
    if not str(value).endswith((".jinja", ".jinja2")):
        raise NotHere("it is another model's template; template names one, or a .jinja file")
    return {"template": value}


_LOADED = NotHere("rows are read by what their files are")
_FIXED = NotHere("the loss is that of the trained tokens, computed in one place")

TRL = Tool(
    "trl",
    "TRL",
    _recognises,
    {
        "use_peft": "use_lora",
        "dataset_config": _config,
        "dataset_train_split": "train_split",
        "dataset_test_split": "eval_split",
        "dataset_num_proc": "num_proc",
        "dataset_streaming": "streaming",
        "model_revision": "revision",
        "lora_modules_to_save": "modules_to_save",
        "use_bnb_nested_quant": "bnb_4bit_use_double_quant",
        "gradient_checkpointing": gradient_checkpointing,
        "padding_free": _padding_free,
        "chat_template_path": _chat_template,
        "lora_task_type": "task_type",
        "gradient_checkpointing_kwargs": NotHere("recomputing is always without re-entry"),
        "dataset_text_field": NotHere("a column of texts is found by its name; columns renames another to text"),
        "dataset_kwargs": _LOADED,
        "packing_strategy": NotHere("packed rows hold whole examples, which do not see each other"),
        "eval_packing": NotHere("an evaluation has one example in a row"),
        "loss_type": _FIXED,
        "activation_offloading": NotHere("gradient_checkpointing saves what it saves"),
        "run_name": "run_name",
    },
    {
        "use_lora": False, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "num_train_epochs": 3,
        "per_device_train_batch_size": 8, "learning_rate": 2e-5, "lr_scheduler_type": "linear", "max_length": 1024,
        "gradient_checkpointing": True, "logging_steps": 10, "too_long": "drop",
    },
)  # fmt: skip
