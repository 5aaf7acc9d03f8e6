"""Attention over rows whose common beginnings are computed once, and the proof that a model keeps to them.

A row of the batch consists of segments. A segment follows its parent, the parent its own, up to the one that begins an
example; a token sees all of these and what stands before it in its own segment. What is asked of the model is asked of
itself, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.adapters import base_of
from tunesmith.model.internals import attention_of
from tunesmith.model.precision import Precision
from tunesmith.model.separation import PROBE_LENGTH, probe_ids, reach
from tunesmith.model.stand_in import asked_of

ROOT = -1
"""The parent of a segment that begins an example."""
NOT_SEEN = float("-inf")
SQUARE_FROM = 768
SQUARE_COST = 0.7
"""Causal attention of so many tokens, against attention to the same keys behind a mask (measured: 0.63 at 1,500)."""
PROBE_PARENTS = (ROOT, 0, 0, 2)
"""Segments of PROBE_LENGTH each: a beginning, what one example has behind it, a longer common beginning, and another
example's rest behind that."""


def attend_to_chains(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    parents: Sequence[int],
    *,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> torch.Tensor:
    """sdpa of each segment's queries over its own keys and those of the segments that it follows.

    Args:
        query: [1, heads, tokens, size]; key and value likewise, with their own number of heads.
        lengths: tokens of each segment.
        parents: the segment that each one follows, a smaller number, or ROOT.
        sliding_window: tokens that a token sees, itself included; None for all.
        dropout: share of attention weights that are dropped.
        scaling: factor of the scores; None for one over the root of the size.

    Returns:
        [1, tokens, heads, size].
    """
    masks = chain_masks(tuple(lengths), tuple(parents), sliding_window, query.dtype, query.device)
    keys, values = key.split(list(lengths), dim=2), value.split(list(lengths), dim=2)
    parts = []
    for index, part in enumerate(query.split(list(lengths), dim=2)):
        chain = list(chain_of(parents, index))
        whole = len(chain) > 1
        attended = attend_to_chain(
            part,
            torch.cat([keys[at] for at in chain], dim=2) if whole else keys[index],
            torch.cat([values[at] for at in chain], dim=2) if whole else values[index],
            masks[index],
            dropout=dropout,
            scaling=scaling,
        )
        parts.append(attended.transpose(1, 2))
    return torch.cat(parts, dim=1)


def attend_to_chain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> torch.Tensor:
    """sdpa of the last tokens of a chain over all of it.

    Args:
        query: [1, heads, last tokens, size].
        key: [1, key heads, tokens, size]; value likewise.
        mask: what is added to the scores, [last tokens, tokens]; None where plain causal attention says the same, with
            queries that are led by zeros for what stands before.
        dropout: share of attention weights that are dropped.
        scaling: as in ``attend_to_chains``.

    Returns:
        [1, heads, last tokens, size].
    """
    before = key.shape[2] - query.shape[2] if mask is None else 0
    attended = torch.nn.functional.scaled_dot_product_attention(
        torch.nn.functional.pad(query, (0, 0, before, 0)) if before else query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[:, :, before:]


def is_square(before: int, length: int) -> bool:
    """Whether plain causal attention, whose queries are led by zeros for what stands before, costs less than a mask.

    torch's kernels leave out what lies behind the diagonal only where there is no mask, and on a CPU from SQUARE_FROM
    tokens on.
    """
    whole = before + length
    return whole >= SQUARE_FROM and SQUARE_COST * whole < length


def chain_of(parents: Sequence[int], index: int) -> Iterator[int]:
    """The segments that a segment sees, from the beginning of its example to itself."""
    if parents[index] != ROOT:
        yield from chain_of(parents, parents[index])
    yield index


@lru_cache(maxsize=2)
def chain_masks(
    lengths: tuple[int, ...],
    parents: tuple[int, ...],
    sliding_window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor | None, ...]:
    """What is added to the scores of each segment, [length, tokens of its chain]: 0 or NOT_SEEN; None where plain
    causal attention says the same, or does once its queries are led by zeros (``is_square``).

    All layers of a pass use the same tensors, which are kept for no longer than the next two kinds of layers need
    theirs.
    """
    masks: list[torch.Tensor | None] = []
    for index, length in enumerate(lengths):
        before = sum(lengths[at] for at in chain_of(parents, index)) - length
        windowed = sliding_window is not None and before + length > sliding_window
        if not windowed and (not before or is_square(before, length)):
            masks.append(None)
            continue
        at = torch.arange(before, before + length, device=device)[:, None]
        distance = at - torch.arange(before + length, device=device)
        hidden = distance < 0
        if sliding_window is not None:
            hidden |= distance >= sliding_window
        masks.append(torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, NOT_SEEN))
    return tuple(masks)


def prove_prefixes(model: torch.nn.Module, precision: Precision, device: torch.device | None = None) -> None:
    """Let a tree of segments pass through the model, and ask which tokens reach the logits of one example.

    Nothing of another example may; and whatever reaches them where the example stands alone must do so here.

    Args:
        model: with its adapters, its attention already ``segmented_attention``.
        precision: format of its arithmetic.
        device: the one that will compute; None where the weights lie.

    Raises:
        ModelError: the model sees something else.
    """
    base = base_of(model)
    with asked_of(model, base, precision, device) as (asked, its_base):
        found, alone = _reach_in_tree(asked, its_base, precision), _reach_alone(asked, its_base, precision)
    other, mine = 1, [0, 2, 3]
    parts = found.split(PROBE_LENGTH)
    if parts[other].any():
        raise _refusal(base, "a row would see another one's tokens")
    if not torch.equal(torch.cat([parts[index] for index in mine]), alone):
        raise _refusal(base, "a row would not see the whole beginning that it shares")


def _reach_in_tree(model: torch.nn.Module, base: PreTrainedModel, precision: Precision) -> torch.Tensor:
    """Whether each token of the probe reaches the logits of its last segment."""
    starts = [PROBE_LENGTH * (len(list(chain_of(PROBE_PARENTS, index))) - 1) for index in range(len(PROBE_PARENTS))]
    positions = torch.cat([torch.arange(start, start + PROBE_LENGTH) for start in starts])
    row = {"input_ids": probe_ids(base, len(PROBE_PARENTS))[None], "position_ids": positions[None]}
    said: dict[str, Any] = {
        "segment_lengths": [PROBE_LENGTH] * len(PROBE_PARENTS), "segment_parents": list(PROBE_PARENTS)
    }  # fmt: skip
    return reach(model, base, row | said, precision)


def _reach_alone(model: torch.nn.Module, base: PreTrainedModel, precision: Precision) -> torch.Tensor:
    """The same for the last segment's example alone in its row."""
    ids = probe_ids(base, len(PROBE_PARENTS)).split(PROBE_LENGTH)
    chain = list(chain_of(PROBE_PARENTS, len(PROBE_PARENTS) - 1))
    row = {"input_ids": torch.cat([ids[index] for index in chain])[None]}
    row["position_ids"] = torch.arange(len(chain) * PROBE_LENGTH)[None]
    return reach(model, base, row | {"segment_lengths": [len(chain) * PROBE_LENGTH]}, precision)


def _refusal(base: PreTrainedModel, what: str) -> ModelError:
    return ModelError(
        f"in {type(base).__name__} shared beginnings cannot be computed once: {what} (attention {attention_of(base)})",
        remedy="set batching auto, unpadded or padded",
    )
