"""Masks for architectures that do not tell their own masks where the examples of a row begin.

The library derives such a mask from the positions, and some of its models (GPT-OSS, Falcon) do not hand them on to it.
Every model takes masks that were made before, as ``generate`` makes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate


def make_masks_from_positions(model: PreTrainedModel) -> RemovableHandle:
    """From now on, make a model's masks before it is called, wherever it is given positions and no mask.

    Args:
        model: without adapters.

    Returns:
        What takes this back.
    """

    def given(
        _body: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        positions = keywords.get("position_ids")
        known = [keywords.get(name) for name in ("attention_mask", "past_key_values")]
        if positions is None or any(one is not None for one in known):
            return None
        shape = torch.empty(*positions.shape, 0, dtype=model.dtype, device=positions.device)
        masks = create_masks_for_generate(model.config, shape, None, None, positions)
        return arguments, keywords | {"attention_mask": masks}

    body: Any = model.base_model
    handle: RemovableHandle = body.register_forward_pre_hook(given, with_kwargs=True)
    return handle
