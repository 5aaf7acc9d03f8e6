"""FlashAttention 2's two kernels in plain torch, so that its layers run where no device has them.

transformers' own code around the kernels stays what it is; only what it loads from the package is replaced. As with the
package, the plain kernel attends over a whole row, and the one for rows of several examples needs their offsets.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as around


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Attention of [rows, tokens, heads, size] over whole rows."""
    assert causal
    assert not softcap
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])[None, :]
    seen = (distance >= 0) & ((distance <= window_size[0]) | torch.tensor(window_size[0] < 0))
    states = [states.transpose(1, 2) for states in (q, k, v)]
    out = F.scaled_dot_product_attention(*states, seen, dropout_p, scale=softmax_scale, enable_gqa=True)
    return out.transpose(1, 2)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Attention of [tokens, heads, size], each example between two offsets by itself."""
    lengths = cu_seqlens_q.diff().tolist()
    assert lengths == cu_seqlens_k.diff().tolist()
    assert (sum(lengths), max(lengths)) == (len(q), max_seqlen_q)
    parts = [
        flash_attn_func(*(part[None] for part in states), dropout_p, softmax_scale, causal, window_size, softcap)[0]
        for states in zip(*(whole.split(lengths) for whole in (q, k, v)), strict=True)
    ]
    return torch.cat(parts)


IMPORTS_IF_INSTALLED = ("falcon", "gpt_neo", "gptj")
"""Architectures that import transformers' function around the kernels only where the package is there."""


def install(patch: pytest.MonkeyPatch) -> None:
    """Let models take flash_attention_2, computed by the functions above, until ``patch`` is undone."""

    def load(implementation: str | None, *_: object, **__: object) -> tuple[Callable[..., object] | None, ...]:
        assert implementation == "flash_attention_2"
        return flash_attn_func, flash_attn_varlen_func, None, around._pad_input, around._unpad_input

    patch.setattr(around, "_lazy_imports", load)
    patch.setattr(around, "_loaded_implementation", None)
    patch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda model, **_: model._supports_flash_attn)
    for name in IMPORTS_IF_INSTALLED:
        modelling = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        patch.setattr(modelling, "_flash_attention_forward", around._flash_attention_forward, raising=False)
        patch.setattr(modelling, "flash_attn_supports_top_left_mask", lambda: False)
