"""Files of Axolotl: one flat YAML with a list of data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.coming_from.tool import (
    NotHere,
    Tool,
    Written,
    bf16,
    gradient_checkpointing,
    share,
    template,
    wandb_project,
)

_FORMATS = {"alpaca": "alpaca", "chat_template": "messages", "sharegpt": "sharegpt", "completion": "text"}
_COLUMNS = {
    "field_messages": "messages", "field_instruction": "instruction", "field_input": "input", "field_output": "output",
    "field": "text",
}  # fmt: skip


def _recognises(tree: Mapping[str, Any]) -> bool:
    own = {"datasets", "sequence_len", "micro_batch_size", "val_set_size", "sample_packing", "adapter"}
    return "base_model" in tree and bool(own & tree.keys())


def _rows(entries: Any, key: str) -> Mapping[str, Any]:
    """The files of a list of data sets, and what one of them says of its rows."""
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise NotHere("it is no list of data sets; train_data names files or hub data sets")
    said: dict[str, Any] = {}
    names: list[str] = []
    columns: dict[str, str] = {}
    for one in entries:
        files = one.get("data_files")
        names += ([files] if isinstance(files, str) else files) if files else [str(one.get("path"))]
        kind = str(one.get("type", "")).partition(".")[0]
        if kind and kind not in _FORMATS:
            raise NotHere(f"rows of the type {one['type']!r} are not known; format and template describe yours")
        if kind:
            said["format"] = _FORMATS[kind]
        if kind == "completion":
            said["loss_on"] = "all"
        columns |= {ours: one[theirs] for theirs, ours in _COLUMNS.items() if one.get(theirs)}
        said |= {"train_split": one["split"]} if one.get("split") else {}
        said |= {"subset": one["name"]} if one.get("name") else {}
    said |= {"columns": columns} if columns else {}
    return {key: names[0] if len(names) == 1 else names} | (said if key == "train_data" else {})


def _datasets(value: Any, written: Written) -> Mapping[str, Any]:
    return _rows(value, "train_data")


def _test_datasets(value: Any, written: Written) -> Mapping[str, Any]:
    return _rows(value, "eval_data")


def _adapter(value: Any, written: Written) -> Mapping[str, Any]:
    if value not in ("lora", "qlora", ""):
        raise NotHere(f"there is no adapter {value!r} here; use_lora trains one")
    return {"use_lora": bool(value)} | ({"load_in_4bit": True} if value == "qlora" else {})


def _all_linear(value: Any, written: Written) -> Mapping[str, Any]:
    return {"target_modules": "all-linear"} if value else {}


def _in_bits(name: str) -> Any:
    def say(value: Any, written: Written) -> Mapping[str, Any]:
        return {name: value} if written.get("adapter") or not value else {}

    return say


def _attention(name: str) -> Any:
    def say(value: Any, written: Written) -> Mapping[str, Any]:
        return {"attn_implementation": name} if value else {}

    return say


def _a_time_per_epoch(setting: str, instead: str) -> Any:
    def say(value: Any, written: Written) -> Mapping[str, Any]:
        if value in (0, 1):
            return {setting: "epoch" if value else "no"}
        raise NotHere(
            f"steps are counted, not parts of an epoch: {instead} (`tunesmith check` tells how many there are)"
        )

    return say


def _tokens(value: Any, written: Written) -> Mapping[str, Any]:
    return {name: value[name] for name in ("pad_token", "eos_token") if isinstance(value, dict) and value.get(name)}


def _hub(value: Any, written: Written) -> Mapping[str, Any]:
    return {"hub_model_id": value, "push_to_hub": True}


_CLASSES = NotHere("the classes follow from the model's own configuration")
_CACHE = NotHere("kept data are found by their contents; cache_dir says where they lie")
_LOGITS = NotHere("logits are computed at trained positions alone")
_SHAPES = NotHere("batches are as long as their longest row; packed rows are filled")

AXOLOTL = Tool(
    "axolotl",
    "Axolotl",
    _recognises,
    {
        "datasets": _datasets,
        "test_datasets": _test_datasets,
        "val_set_size": share,
        "adapter": _adapter,
        "load_in_4bit": _in_bits("load_in_4bit"),
        "load_in_8bit": _in_bits("load_in_8bit"),
        "lora_target_linear": _all_linear,
        "lora_modules_to_save": "modules_to_save",
        "lora_fan_in_fan_out": "fan_in_fan_out",
        "peft_use_dora": "use_dora",
        "peft_use_rslora": "use_rslora",
        "lora_model_dir": "lora_model_dir",
        "revision_of_model": "revision",
        "sample_packing": "use_packing",
        "optimizer": "optim",
        "bf16": bf16,
        "chat_template": template,
        "chat_template_jinja": "template",
        "gradient_checkpointing": gradient_checkpointing,
        "flash_attention": _attention("flash_attention_2"),
        "sdp_attention": _attention("sdpa"),
        "eager_attention": _attention("eager"),
        "evals_per_epoch": _a_time_per_epoch("eval_strategy", "eval_steps"),
        "saves_per_epoch": _a_time_per_epoch("save_strategy", "save_steps"),
        "special_tokens": _tokens,
        "tokens": "new_tokens",
        "hub_model_id": _hub,
        "wandb_project": wandb_project,
        "dataset_processes": "num_proc",
        "model_type": _CLASSES,
        "tokenizer_type": _CLASSES,
        "is_llama_derived_model": _CLASSES,
        "dataset_prepared_path": _CACHE,
        "pad_to_sequence_len": _SHAPES,
        "eval_sample_packing": _SHAPES,
        "gradient_checkpointing_kwargs": NotHere("recomputing is always without re-entry"),
        "strict": NotHere("the weights must always fit the model"),
        "local_rank": NotHere("the launcher says it"),
        "fsdp": NotHere("strategy fsdp2 spreads the model"),
        "fsdp_config": NotHere("strategy fsdp2 spreads the model"),
        "xformers_attention": NotHere("attn_implementation takes flash_attention_2, sdpa or eager"),
        "wandb_watch": NotHere("gradients are not sent"),
        "wandb_log_model": NotHere("models are not sent to trackers"),
        "hub_strategy": NotHere("the finished model is uploaded"),
        "plugins": NotHere("code of other packages is not loaded from a file"),
        "cut_cross_entropy": _LOGITS,
        "liger_fused_linear_cross_entropy": _LOGITS,
        "liger_rope": _LOGITS,
        "liger_rms_norm": _LOGITS,
        "liger_glu_activation": _LOGITS,
        "loss_watchdog_threshold": NotHere("a loss that is not finite ends the run at once"),
        "loss_watchdog_patience": NotHere("a loss that is not finite ends the run at once"),
        "eval_table_size": NotHere("gen_every_n_steps shows answers while training"),
        "eval_max_new_tokens": "max_new_tokens",
        "lora_mlp_kernel": _LOGITS,
        "lora_qkv_kernel": _LOGITS,
        "lora_o_kernel": _LOGITS,
        "debug": NotHere("`tunesmith preview` shows what is trained"),
    },
    {
        "use_lora": False, "lora_dropout": 0.0, "per_device_train_batch_size": 1, "num_train_epochs": 1,
        "max_length": 512, "too_long": "drop", "lr_scheduler_type": "cosine", "seed": 42,
        "output_dir": "./model-out",
    },
)  # fmt: skip
