"""Which parts of a model read text, and which read images or sound beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
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


def is_inside(name: str, parts: list[str]) -> bool:
    """Whether a weight or module stands in one of the parts."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)
