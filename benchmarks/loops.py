"""Training loops as a good engineer writes them by hand for one model: the marks to measure against.

Both ask the head for labelled positions only. ``padded`` pads to the longest row; ``unpadded`` lays rows end to end and
attends to each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

IGNORE = -100
_lengths: list[int] = []


def attend_by_row(
    module: Any, query: Any, key: Any, value: Any, _mask: Any, scaling: Any = None, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row of ``_lengths`` by itself."""
    grouped = query.shape[1] != key.shape[1]
    parts = zip(*(whole.split(_lengths, dim=2) for whole in (query, key, value)), strict=True)
    answers = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped) for q, k, v in parts
    ]
    return torch.cat([answer.transpose(1, 2) for answer in answers], dim=1), None


def unpadded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows end to end."""
    _lengths[:] = [len(row["input_ids"]) for row in rows]
    labels = [label for row in rows for label in (IGNORE, *row["labels"][1:])]
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "position_ids": torch.cat([torch.arange(length) for length in _lengths])[None],
        "labels": torch.tensor([labels]),
    }


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A row each, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = filled("input_ids", 0)
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": filled("labels", IGNORE)}


def train(model: Any, batches: list[list[dict[str, Any]]], layout: str, learning_rate: float) -> Iterator[float]:
    """Train a model, or its adapter where it has one; the loss of each step."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if layout == "unpadded":
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register("by_row", attend_by_row)
        AttentionMaskInterface.register("by_row", lambda **_: None)
        base.set_attn_implementation("by_row")
    trunk, head = base.model, base.lm_head
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    model.train()
    for rows in batches:
        batch = unpadded(rows) if layout == "unpadded" else padded(rows)
        labels = batch.pop("labels")
        hidden = trunk(**batch, use_cache=False).last_hidden_state
        labelled = labels[:, 1:] != IGNORE
        loss = F.cross_entropy(head(hidden[:, :-1][labelled]).float(), labels[:, 1:][labelled])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
