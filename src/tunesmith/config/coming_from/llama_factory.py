"""Files of LLaMA-Factory: one flat YAML or JSON, whose data sets are described in ``dataset_info.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.coming_from.tool import NotHere, Tool, Written, bf16, share, template
from tunesmith.config.files import read_json

_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
"""What its description of a data set calls a column -> what our format of such rows does."""


def _recognises(tree: Mapping[str, Any]) -> bool:
    return bool({"finetuning_type", "stage", "dataset_dir", "lora_target"} & tree.keys()) and (
        "model_name_or_path" in tree
    )


def _stage(value: Any, written: Written) -> Mapping[str, Any]:
    if value != "sft":
        raise NotHere(f"{value!r} is another kind of training; tunesmith fine-tunes on answers (sft)")
    return {}


def _finetuning_type(value: Any, written: Written) -> Mapping[str, Any]:
    if value not in ("lora", "full"):
        raise NotHere(f"{value!r} is not offered; use_lora true or false")
    return {"use_lora": value == "lora"}


def _described(written: Written) -> Mapping[str, Any]:
    folder = Path(str(written.get("dataset_dir") or "data"))
    try:
        found = read_json(folder / "dataset_info.json")
    except (OSError, ValueError) as error:
        where = folder / "dataset_info.json"
        raise NotHere(f"its description {where} cannot be read; train_data names files or hub data sets") from error
    return found if isinstance(found, dict) else {}


def _rows(key: str) -> Any:
    def say(value: Any, written: Written) -> Mapping[str, Any]:
        wanted = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
        known = _described(written)
        names: list[str] = []
        said: dict[str, Any] = {}
        for name in wanted:
            one = known.get(name)
            if not isinstance(one, dict):
                raise NotHere(f"{name!r} is not described in dataset_info.json; {key} names files or hub data sets")
            local = Path(str(written.get("dataset_dir") or "data")) / str(one.get("file_name"))
            names.append(str(local) if one.get("file_name") else str(one.get("hf_hub_url")))
            said["format"] = "sharegpt" if one.get("formatting") == "sharegpt" else "alpaca"
            told = one.get("columns") or {}
            columns = {_COLUMNS[role]: column for role, column in told.items() if role in _COLUMNS}
            said |= {"columns": columns} if columns else {}
        return {key: names[0] if len(names) == 1 else names} | (said if key == "train_data" else {})

    return say


def _lora_target(value: Any, written: Written) -> Mapping[str, Any]:
    return {"target_modules": "all-linear" if value == "all" else value}


def _lora_rank(value: Any, written: Written) -> Mapping[str, Any]:
    """Its alpha is twice the rank, unless somebody writes another."""
    return {"lora_r": value} | ({} if written.get("lora_alpha") else {"lora_alpha": 2 * value})


def _quantization_bit(value: Any, written: Written) -> Mapping[str, Any]:
    if value not in (4, 8):
        raise NotHere("weights are held in 4 or 8 bits: load_in_4bit, load_in_8bit")
    return {f"load_in_{value}bit": True}


def _quantization_method(value: Any, written: Written) -> Mapping[str, Any]:
    if value not in ("bnb", "bitsandbytes"):
        raise NotHere("bitsandbytes holds the weights in few bits")
    return {}


def _flash_attn(value: Any, written: Written) -> Mapping[str, Any]:
    known = {"auto": "auto", "fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
    if value not in known:
        raise NotHere("attn_implementation takes flash_attention_2, sdpa or eager")
    return {"attn_implementation": known[value]}


def _train_on_prompt(value: Any, written: Written) -> Mapping[str, Any]:
    return {"loss_on": "all"} if value else {}


def _mask_history(value: Any, written: Written) -> Mapping[str, Any]:
    return {"loss_on": "last_assistant"} if value else {}


def _pissa(value: Any, written: Written) -> Mapping[str, Any]:
    return {"init_lora_weights": "pissa"} if value else {}


def _additional(value: Any, written: Written) -> Mapping[str, Any]:
    return {"modules_to_save": value.split(",") if isinstance(value, str) else value}


def _deepspeed(value: Any, written: Written) -> Mapping[str, Any]:
    if isinstance(value, dict):
        raise NotHere(f"write it into a file of its own: deepspeed FILE.json ({json.dumps(value)[:60]} ...)")
    return {"deepspeed": value}


_CACHE = NotHere("kept data are found by their contents")
_FAST = NotHere("logits are computed at trained positions alone, and batching packed leaves no padding")

LLAMA_FACTORY = Tool(
    "llama-factory",
    "LLaMA-Factory",
    _recognises,
    {
        "stage": _stage,
        "finetuning_type": _finetuning_type,
        "dataset": _rows("train_data"),
        "eval_dataset": _rows("eval_data"),
        "dataset_dir": lambda value, written: {},
        "template": template,
        "val_size": share,
        "lora_target": _lora_target,
        "lora_rank": _lora_rank,
        "additional_target": _additional,
        "pissa_init": _pissa,
        "quantization_bit": _quantization_bit,
        "quantization_method": _quantization_method,
        "flash_attn": _flash_attn,
        "train_on_prompt": _train_on_prompt,
        "mask_history": _mask_history,
        "neat_packing": "use_packing",
        "preprocessing_num_workers": "num_proc",
        "model_revision": "revision",
        "bf16": bf16,
        "deepspeed": _deepspeed,
        "overwrite_cache": _CACHE,
        "tokenized_path": _CACHE,
        "plot_loss": NotHere("a finished run always has plots"),
        "use_unsloth": _FAST,
        "enable_liger_kernel": _FAST,
        "include_num_input_tokens_seen": NotHere("tokens a second are always logged"),
        "predict_with_generate": "generate",
    },
    {
        "use_lora": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear",
        "max_length": 2048, "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 5e-5,
        "lr_scheduler_type": "linear", "too_long": "truncate_prompt",
    },
)  # fmt: skip
