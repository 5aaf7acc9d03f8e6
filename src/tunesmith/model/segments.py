"""Attention of several examples in one row, each by itself, without a mask over the whole row.

A row of T tokens that holds examples end to end needs a block-diagonal mask of T x T when one kernel call covers it; a
call for each example needs none. Which layout a batch has is decided elsewhere; this module trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.errors import ModelError
from tunesmith.model.adapters import base_of
from tunesmith.model.internals import attention_of, takes_attention_functions
from tunesmith.model.masks import make_masks_from_positions
from tunesmith.model.precision import Precision
from tunesmith.model.prefixes import attend_to_chains
from tunesmith.model.separation import PROBE_LENGTH, prove_apart
from tunesmith.model.stand_in import can_compute
from tunesmith.notices import notify

SEGMENTED = "segmented_sdpa"
"""Name under which the attention of this module is known to transformers."""

Boundaries = Literal["lengths", "cu_seq_lens", "seq_idx", "positions"]
"""How a model learns where examples begin: lengths as numbers, FlashAttention's offsets, these and the number of each
token's example (for kernels of convolutions and states), or positions alone."""


def segmented_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segment_lengths: Sequence[int] | None = None,
    segment_parents: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, called for each example of the row; without ``segment_lengths`` it is that function itself.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, size]; key and value likewise, with their own number of heads.
        attention_mask: ignored where ``segment_lengths`` says how the row is divided.
        segment_lengths: tokens of each example; they are numbers of Python, so that no device has to be waited for.
        segment_parents: where examples share beginnings, the segment that each segment follows, see ``prefixes``.
        sliding_window: tokens that a token sees, itself included; None for all before it.
        **keywords: dropout, scaling and whatever else the layer hands on.

    Raises:
        ModelError: the row holds several examples and the model did not hand on their lengths.
    """
    if segment_lengths is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise ModelError(
                f"{type(module).__name__} does not say where the examples of a row begin",
                remedy="set batching padded or length_grouped",
            )
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **keywords
        )
    lengths = list(segment_lengths)
    if segment_parents is not None:
        chosen = {name: keywords[name] for name in ("dropout", "scaling") if name in keywords}
        return attend_to_chains(
            query, key, value, lengths, segment_parents, sliding_window=sliding_window, **chosen
        ), None
    parts = [
        sdpa_attention_forward(module, q, k, v, _window_mask(q, sliding_window), **keywords)[0]
        for q, k, v in zip(*(whole.split(lengths, dim=2) for whole in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=1), None


def _window_mask(query: torch.Tensor, sliding_window: int | None) -> torch.Tensor | None:
    """What each token of one example sees, [1, 1, length, length]; None where plain causal attention says the same."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    position = torch.arange(length, device=query.device)
    distance = position[:, None] - position[None, :]
    return ((distance >= 0) & (distance < sliding_window))[None, None]


def segmented_mask(
    *,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    q_length: int,
    kv_length: int,
    device: torch.device | str = "cpu",
    **keywords: Any,
) -> torch.Tensor | None:
    """The mask of a padded batch as for sdpa; of a row with several examples an empty tensor, for nothing is masked.

    The empty tensor, unlike None, tells ``segmented_attention`` that it must know the lengths.
    """
    if attention_mask is None and not allow_is_causal_skip and q_length == kv_length:
        return _no_mask(device)
    mask: torch.Tensor | None = sdpa_mask(
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        q_length=q_length,
        kv_length=kv_length,
        device=device,
        **keywords,
    )
    return mask


def _no_mask(device: torch.device | str) -> torch.Tensor:
    """An empty mask, of four dimensions: some models slice theirs."""
    return torch.empty(1, 1, 0, 0, device=device)


def keep_examples_apart(
    model: torch.nn.Module, precision: Precision, device: torch.device | None = None, *, dense: bool = True
) -> Boundaries:
    """Prepare a model for rows that hold several examples, and prove on it that they do not see each other.

    sdpa becomes ``segmented_attention`` where the architecture takes other attention functions; FlashAttention 2 has
    kernels for such rows, where the architecture's layers hand on the offsets; else the model derives a dense mask from
    the positions, which is said.

    Args:
        model: with its adapters.
        precision: format of its arithmetic.
        device: the one that will compute, where the weights are not yet on it; None where they lie.
        dense: whether a dense mask will do where the architecture was to get by without one and fails.

    Returns:
        what the batches must tell the model.

    Raises:
        ModelError: the model lets examples of one row see each other.
    """
    base = base_of(model)
    obstacle = segments_obstacle(base)
    if attention_of(base) == "flash_attention_2":
        return _prove_apart_by_offsets(model, base, precision, device)
    if obstacle is None:
        register()
        base.set_attn_implementation(SEGMENTED)
        try:
            _prove_apart_by_lengths(model, base, precision, device)
        except ModelError as error:
            base.set_attn_implementation("sdpa")
            if not dense:
                raise
            try:
                _prove_apart_densely(model, base, precision, device)
            except ModelError:
                raise error from None
            obstacle = f"{type(base).__name__} goes wrong without one"
        else:
            notify("attention: sdpa, for each example of a row by itself")
            return "lengths"
    else:
        _prove_apart_densely(model, base, precision, device)
    notify(f"attention: a dense mask keeps the examples of a row apart; its cost grows with the square ({obstacle})")
    return "positions"


def _prove_apart_by_offsets(
    model: torch.nn.Module, base: PreTrainedModel, precision: Precision, device: torch.device | None
) -> Boundaries:
    """Prove it with FlashAttention's offsets, alone or with what kernels of layers with a state begin anew by.

    Raises:
        ModelError: neither does.
    """
    try:
        prove_apart(model, base, _said("cu_seq_lens"), precision, device)
    except ModelError as error:
        try:
            prove_apart(model, base, _said("seq_idx"), precision, device)
        except ModelError:
            raise error from None
        notify("attention: flash_attention_2; layers with a state are told where each example of a row begins")
        return "seq_idx"
    return "cu_seq_lens"


def _prove_apart_densely(
    model: torch.nn.Module, base: PreTrainedModel, precision: Precision, device: torch.device | None
) -> None:
    """Prove it with the masks that the model itself makes of positions, or with those that we make of them.

    Raises:
        ModelError: neither does; then the model is as it was.
    """
    try:
        prove_apart(model, base, {}, precision, device)
    except ModelError as error:
        _prove_apart_by_masks(model, base, precision, device, error)


def _prove_apart_by_lengths(
    model: torch.nn.Module, base: PreTrainedModel, precision: Precision, device: torch.device | None
) -> None:
    """Prove it with the lengths of examples; from then on the model is given the empty mask of ``segmented_mask``
    wherever it is told them. To make one itself, the library would look at the positions, and so wait for a device at
    every step. Architectures that read their mask elsewhere as well go on without.

    Raises:
        ModelError: the model lets examples of one row see each other.
    """

    def given(
        _body: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if keywords.get("segment_lengths") is None or keywords.get("attention_mask") is not None:
            return None
        return arguments, keywords | {"attention_mask": _no_mask(keywords["position_ids"].device)}

    if can_compute(base, device or base.device):  # else a small model is asked in its place
        body: Any = base.base_model
        handle = body.register_forward_pre_hook(given, with_kwargs=True)
        try:
            prove_apart(model, base, _said("lengths"), precision, device)
            return
        except ModelError:
            handle.remove()
    prove_apart(model, base, _said("lengths"), precision, device)


def _prove_apart_by_masks(
    model: torch.nn.Module,
    base: PreTrainedModel,
    precision: Precision,
    device: torch.device | None,
    refusal: ModelError,
) -> None:
    """Prove once more, with masks that know the positions.

    Raises:
        ModelError: ``refusal``; then the model is as it was.
    """
    masks = make_masks_from_positions(base)
    try:
        prove_apart(model, base, {}, precision, device)
    except ModelError:
        masks.remove()  # an architecture that takes no such masks, or whose layers look back in another way
        raise refusal from None


def segments_obstacle(model: PreTrainedModel) -> str | None:
    """Why neither ``segmented_attention`` nor FlashAttention can attend to each example of a row by itself; None when
    one of them can."""
    config = model.config
    if attention_of(model) not in ("sdpa", SEGMENTED, "flash_attention_2"):
        return f"attention is {attention_of(model)}"
    if not takes_attention_functions(model):
        return f"{type(model).__name__} takes no other attention function"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"its layers are {', '.join(sorted(kinds)) or 'chunked'}"
    return None


def register() -> None:
    """Make the attention known to transformers; doing it again changes nothing."""
    AttentionInterface.register(SEGMENTED, segmented_attention)
    AttentionMaskInterface.register(SEGMENTED, segmented_mask)


def _said(boundaries: Boundaries) -> dict[str, Any]:
    """What tells a model so that a row holds two examples of PROBE_LENGTH, as the collator of training tells it."""
    if boundaries == "positions":
        return {}
    if boundaries == "lengths":
        return {"segment_lengths": [PROBE_LENGTH, PROBE_LENGTH]}
    offsets = torch.tensor([0, PROBE_LENGTH, 2 * PROBE_LENGTH], dtype=torch.int32)
    numbers = torch.arange(2, dtype=torch.int32).repeat_interleave(PROBE_LENGTH)[None]
    return {
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": PROBE_LENGTH,
        "max_length_k": PROBE_LENGTH,
    } | ({"seq_idx": numbers} if boundaries == "seq_idx" else {})
