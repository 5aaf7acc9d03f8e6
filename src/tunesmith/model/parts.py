"""Which parts of a model read text, and which read images or sound beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel


def beside_language(model: PreTrainedModel) -> list[str]:
    """Names of the parts that text does not pass through (towers and projectors); none of a plain language model."""
    text_config = model.config.get_text_config()
    if text_config is model.config:
        return []
    language: Any = next(
        (part for part in model.modules()
         if part is not model and isinstance(getattr(part, "config", None), type(text_config))),
        model.get_decoder(),
    )  # fmt: skip
    wanted = [part for part in (language, model.get_output_embeddings()) if part is not None]
    return [] if language is model else list(_without(model, wanted, ""))


def _without(module: torch.nn.Module, wanted: list[Any], prefix: str) -> Iterator[str]:
    """Names of the greatest parts that hold none of those that are wanted."""
    for name, child in module.named_children():
        if any(child is one for one in wanted):
            continue
        if any(part is one for part in child.modules() for one in wanted):
            yield from _without(child, wanted, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def keep_to_language(model: PreTrainedModel, config: LoraConfig) -> None:
    """Have an adapter leave out the parts that text does not pass through: in a run on text they learn nothing."""
    parts = beside_language(model)
    if not parts or config.target_modules is None:
        return
    names = "|".join(map(re.escape, parts))
    beside = rf"({names})(\..*)?"
    given = config.exclude_modules
    if isinstance(given, str):
        given = f"({given})"
    elif given:
        given = rf"(.*\.)?({'|'.join(map(re.escape, sorted(given)))})"
    config.exclude_modules = f"{beside}|{given}" if given else beside


def freeze_beside_language(model: PreTrainedModel) -> list[str]:
    """Do not train the parts that text does not pass through; their names."""
    parts = beside_language(model)
    for name, parameter in model.named_parameters():
        if is_inside(name, parts):
            parameter.requires_grad = False
    return parts


def is_inside(name: str, parts: list[str]) -> bool:
    """Whether a weight or module stands in one of the parts."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)
