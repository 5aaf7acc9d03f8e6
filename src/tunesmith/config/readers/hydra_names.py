"""The names of Hydra configurations (document 4): which key is which setting."""

from __future__ import annotations

from typing import Any

from tunesmith.config.names import (
    ANSWERED,
    Convert,
    NameTable,
    Spelling,
    dtype_name,
    in_sections,
    modules,
    newest_checkpoint,
    unset_is_empty,
)


def column(expected: str) -> Convert:
    """Conversion of ``input_key`` and ``output_key``: one entry of ``data.columns``, none for the usual name."""

    def convert(value: Any, current: Any) -> Any:
        others = {name: given for name, given in (current or {}).items() if name != expected}
        return others if value in (None, expected) else others | {expected: value}

    return convert


def seed_or_nothing(value: Any, current: Any) -> Any:
    """Conversion of ``shuffle``: its value is the seed; ``false`` means no shuffling."""
    return None if value is False else value


SPELLINGS: dict[str, Spelling] = {
    "model.load_in_4bit": Spelling("quantization.load_in_4bit"),
    "model.load_in_8bit": Spelling("quantization.load_in_8bit"),
    "model.quantization_config.load_in_4bit": Spelling("quantization.load_in_4bit"),
    "model.quantization_config.load_in_8bit": Spelling("quantization.load_in_8bit"),
    "model.quantization_config.bnb_4bit_quant_type": Spelling("quantization.bnb_4bit_quant_type"),
    "model.quantization_config.bnb_4bit_use_double_quant": Spelling("quantization.bnb_4bit_use_double_quant"),
    "model.quantization_config.bnb_4bit_compute_dtype": Spelling(
        "quantization.bnb_4bit_compute_dtype", dtype_name, str | None
    ),
    "model.quantization_config.llm_int8_skip_modules": Spelling("quantization.llm_int8_skip_modules", modules),
    "model.lora.r": Spelling("adapter.lora_r"),
    "model.lora.lora_alpha": Spelling("adapter.lora_alpha"),
    "model.lora.lora_dropout": Spelling("adapter.lora_dropout"),
    "model.lora.target_modules": Spelling("adapter.target_modules", modules),
    "model.lora.target_parameters": Spelling("adapter.target_parameters", modules),
    "model.lora.exclude_modules": Spelling("adapter.exclude_modules", modules),
    "model.lora.rank_pattern": Spelling("adapter.rank_pattern", unset_is_empty),
    "model.lora.alpha_pattern": Spelling("adapter.alpha_pattern", unset_is_empty),
    "model.lora.modules_to_save": Spelling("adapter.modules_to_save"),
    "model.lora.bias": Spelling("adapter.bias"),
    "model.lora.fan_in_fan_out": Spelling("adapter.fan_in_fan_out"),
    "model.lora.use_rslora": Spelling("adapter.use_rslora"),
    "model.lora.use_dora": Spelling("adapter.use_dora"),
    "model.lora.init_lora_weights": Spelling("adapter.init_lora_weights"),
    "model.lora.layers_pattern": Spelling("adapter.layers_pattern"),
    "model.lora.layers_to_transform": Spelling("adapter.layers_to_transform"),
    "model.lora.peft_type": Spelling("adapter.peft_type"),
    "model.lora.task_type": Spelling("adapter.task_type"),
    "model.max_sequence_len": Spelling("data.max_length"),
    "model.completion_start": Spelling("data.completion_start"),
    "model.instruction_in_prompt": Spelling("data.instruction_in_prompt"),
    "input_key": Spelling("data.columns", column("prompt"), str | None, part="entry"),
    "output_key": Spelling("data.columns", column("completion"), str | None, part="entry"),
    "resume_checkpoint": Spelling("training.resume_from_checkpoint", newest_checkpoint, bool | str | None),
    "shuffle": Spelling("data.shuffle_seed", seed_or_nothing, int | bool | None),
}
"""Names of this dialect; the rest are the schema's names and those of ``config/names.py``."""

HOMES: dict[str, tuple[str, ...]] = {
    "model": ("model", "quantization"),
    "train": ("training", "evaluation", "tracking", "launch"),
}
"""Section of the document -> the schema's sections whose settings may stand in it."""


def _names() -> NameTable:
    table = in_sections(HOMES)
    for section in HOMES:
        table |= {f"{section}.{name}": spelling for name, spelling in ANSWERED.items()}
    return NameTable(table | SPELLINGS)


NAMES = _names()
