"""Files with the arguments of Unsloth's programs: flat, or in the groups of its newer command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.coming_from.tool import NotHere, Tool, Written, gradient_checkpointing, wandb_project


def _recognises(tree: Mapping[str, Any]) -> bool:
    groups = isinstance(tree.get("lora"), dict) and isinstance(tree.get("data"), dict) and "model" in tree
    flat = bool({"model_name", "model"} & tree.keys()) and bool(
        {"use_gradient_checkpointing", "random_state", "loftq_config", "save_method", "finetune_language_layers"}
        & tree.keys()
    )
    return groups or flat


def _training_type(value: Any, written: Written) -> Mapping[str, Any]:
    if value not in ("lora", "qlora", "full"):
        raise NotHere(f"{value!r} is not offered; use_lora true or false")
    return {"use_lora": value != "full"} | ({"load_in_4bit": False} if value == "full" else {})


def _save_method(value: Any, written: Written) -> Mapping[str, Any]:
    if str(value).startswith("merged") or value == "forced_merged_4bit":
        return {"save_merged_model": True}
    return {}


def _push(value: Any, written: Written) -> Mapping[str, Any]:
    return {"push_to_hub": bool(value)}


def _tracker(name: str) -> Any:
    def say(value: Any, written: Written) -> Mapping[str, Any]:
        if name == "wandb":
            return {"use_wandb": bool(value)}
        return {"report_to": [name]} if value else {}

    return say


def _format(value: Any, written: Written) -> Mapping[str, Any]:
    known = {"auto": "auto", "alpaca": "alpaca", "sharegpt": "sharegpt", "chatml": "messages", "raw": "text"}
    if value not in known:
        raise NotHere("format describes the rows")
    return {"format": known[value]}


def _completions(value: Any, written: Written) -> Mapping[str, Any]:
    return {"loss_on": "completion" if value else "all"}


def _modules(value: Any, written: Written) -> Mapping[str, Any]:
    return {"target_modules": value}


def _save_steps(value: Any, written: Written) -> Mapping[str, Any]:
    return {"save_steps": value} if value else {"save_strategy": "no"}


def _max_steps(value: Any, written: Written) -> Mapping[str, Any]:
    return {"max_steps": value or -1}


_SECRET = NotHere("a token never stands in a file: HF_TOKEN and WANDB_API_KEY are read from the environment")
_LOFTQ = NotHere("init_lora_weights takes pissa and olora")
_IMAGES = NotHere("models of text are trained")

_FLAT: Mapping[str, Any] = {
    "model_name": "model_name_or_path",
    "dataset": "train_data",
    "local_dataset": "train_data",
    "r": "lora_r",
    "save_steps": _save_steps,
    "max_steps": _max_steps,
    "use_gradient_checkpointing": gradient_checkpointing,
    "gradient_checkpointing": gradient_checkpointing,
    "random_state": "seed",
    "random_seed": "seed",
    "save_method": _save_method,
    "push_model": _push,
    "hub_path": "hub_model_id",
    "training_type": _training_type,
    "format_type": _format,
    "train_on_completions": _completions,
    "target_modules": _modules,
    "enable_wandb": _tracker("wandb"),
    "enable_tensorboard": _tracker("tensorboard"),
    "wandb_project": wandb_project,
    "loftq_config": _LOFTQ,
    "use_loftq": _LOFTQ,
    "init_lora_weights": "init_lora_weights",
    "wandb_token": _SECRET,
    "hf_token": _SECRET,
    "hub_token": _SECRET,
    "token": _SECRET,
    "tensorboard_dir": NotHere("curves lie in the run folder"),
    "save_model": NotHere("the finished model is always saved"),
    "save_path": NotHere("the finished model lies in output_dir"),
    "save_gguf": NotHere("`tunesmith merge RUN NEW --gguf q8_0` writes it"),
    "quantization": NotHere("`tunesmith merge RUN NEW --gguf q8_0` writes it"),
    "push_gguf": NotHere("`tunesmith push` uploads what you name"),
    "fast_inference": NotHere("generation_engine chooses what generates"),
    "max_lora_rank": NotHere("lora_r is the rank"),
    "full_finetuning": lambda value, written: {"use_lora": not value} | ({"load_in_4bit": False} if value else {}),
    "vision_all_linear": _IMAGES,
    "finetune_vision_layers": _IMAGES,
    "finetune_language_layers": _IMAGES,
    "finetune_attention_modules": NotHere("target_modules chooses the layers"),
    "finetune_mlp_modules": NotHere("target_modules chooses the layers"),
    "dataset_text_field": NotHere("a column of texts is found by its name; columns renames another to text"),
    "dataset_num_proc": "num_proc",
}
_GROUPS = ("data", "training", "lora", "logging")


class _Keys(dict[str, Any]):
    """The table for keys with and without their group; a group changes no meaning."""

    def get(self, key: str, default: Any = None) -> Any:
        group, _, name = key.rpartition(".")
        found = super().get(name if group in _GROUPS else key, default)
        return name if found == key and group in _GROUPS else found


UNSLOTH = Tool(
    "unsloth",
    "Unsloth",
    _recognises,
    _Keys(_FLAT),
    {
        "use_lora": True, "load_in_4bit": True, "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "max_length": 2048, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "warmup_steps": 5,
        "learning_rate": 2e-4, "optim": "adamw_8bit", "weight_decay": 0.01, "lr_scheduler_type": "linear",
        "seed": 3407, "gradient_checkpointing": True, "too_long": "truncate_prompt",
    },
    nested=frozenset(_GROUPS),
)  # fmt: skip
