"""What all prompts begin with: computed once, and kept once while they are continued side by side.

Rows that share keys and values see them in an attention of their own, and the model is asked whether it answers alike
so. Where it does not, each row gets a copy, behind its padding. On a CPU that attention also lets prompts be read one
behind the other, without padding, whether or not they have a beginning in common.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.evaluate.decoding import device_of, keeps_plain_cache, remember, remembered
from tunesmith.model.adapters import base_of
from tunesmith.model.answering import attributes_kept
from tunesmith.model.internals import attention_of, attentions_of, takes_attention_functions
from tunesmith.model.prefixes import attend_to_chain, is_square
from tunesmith.model.segments import SEGMENTED

LEAST_PREFIX = 16
"""A shared beginning of fewer tokens is not worth a pass of its own."""
LEAST_DIFFERENCE = 1e-4
"""Of logits, against their spread, in which rounding cannot be told from another attention."""
READ_AT_ONCE = 4096
"""Tokens of prompts that are read one behind the other in one pass; longer ones are no quicker and need more memory."""
BEHIND = "sdpa_behind_beginning"
"""Name under which ``attend_behind`` is known to transformers."""
_ATTRIBUTE = "shared_beginning"
_ALTERING = ("softcap", "s_aux", "position_bias")
"""What layers may hand on that changes scores."""
_known: WeakKeyDictionary[torch.nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""Model -> whether it answers alike, by whether prompts have something in common; each is asked once."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of tokens that all prompts begin with.

    Attributes:
        tokens: their ids; none of them where all that is asked for is to be read without padding.
        layers: for each layer two tensors [1, heads, length, size].
        once: whether rows have them in common, in columns before their padding; else each has a copy behind it.
    """

    tokens: Sequence[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    once: bool = False

    @property
    def length(self) -> int:
        """How many they are."""
        return len(self.tokens)

    @property
    def columns(self) -> int:
        """Columns that stand before the padding of every row."""
        return self.length if self.once else 0

    def begin(self, model: PreTrainedModel, cache: DynamicCache, prompts: Sequence[Sequence[int]]) -> bool:
        """Begin the empty cache of a batch of prompts, which are padded to the width of the longest.

        Copies are what a pass over the first ``length`` columns would leave, so the library goes on from them as after
        any left padding. What stands in padded columns does not matter, since attention is masked there.

        Returns:
            Whether it holds all columns but the last already.
        """
        if self.once:
            layers = [_Behind(keys, values) for keys, values in self.layers]
            cache.layers = [*layers]
            if device_of(model).type != "cpu":
                return False  # there a call for each row costs more than the padding does
            self._fill(model, layers, [prompt[self.length : -1] for prompt in prompts])
            return True
        width = max(map(len, prompts))
        columns = torch.arange(self.length) - torch.tensor([width - len(prompt) for prompt in prompts])[:, None]
        for number, tensors in enumerate(self.layers):
            index = columns.clamp(min=0).to(tensors[0].device)
            keys, values = (tensor[0][:, index].transpose(0, 1) for tensor in tensors)
            cache.update(keys, values, number)
        return False

    def _fill(self, model: PreTrainedModel, layers: Sequence[_Behind], parts: Sequence[Sequence[int]]) -> None:
        """Compute keys and values of these tokens of each row, without padding, and put them in theirs."""
        read = [self._read(model, some) for some in _at_once(parts)]
        lengths = list(map(len, parts))
        for layer, *found in zip(layers, *read, strict=True):
            layer.update(*(_in_rows(torch.cat(pieces, dim=2), lengths) for pieces in zip(*found, strict=True)))

    def _read(self, model: PreTrainedModel, parts: Sequence[Sequence[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer, of these tokens one behind the other in one row: [1, heads, tokens, size]."""
        lengths = list(map(len, parts))
        last = len(self.layers) - 1
        layers = [_InOneRow(*whole, last=number == last) for number, whole in enumerate(self.layers)]
        if any(lengths):
            cache = DynamicCache()
            cache.layers = [*layers]
            tokens = [token for part in parts for token in part]
            positions = [self.length + at for length in lengths for at in range(length)]
            with contextlib.suppress(_Kept):
                remember(model, tokens, cache, position_ids=torch.tensor([positions]), segment_lengths=lengths)
        return [layer.own for layer in layers]


def _at_once(parts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """As many rows after one another as have READ_AT_ONCE tokens together, or one that has more."""
    some: list[Sequence[int]] = []
    for part in parts:
        if some and sum(map(len, some)) + len(part) > READ_AT_ONCE:
            yield some
            some = []
        some.append(part)
    yield some


def _in_rows(whole: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """[1, heads, tokens, size] of rows one behind the other as [rows, heads, longest, size], padded in front."""
    longest = max(lengths)
    rows = whole.new_zeros(len(lengths), whole.shape[1], longest, whole.shape[3])
    for row, part in zip(rows, whole[0].split(list(lengths), dim=1), strict=True):
        row[:, longest - part.shape[1] :] = part
    return rows


class _Behind(DynamicLayer):
    """Keys and values of rows behind a beginning, [rows, heads, tokens, size], without those of the beginning itself:
    the attention finds them at the keys.

    Args:
        keys: of the beginning, [1, heads, length, size]; values likewise.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._beginning = keys, values

    @property
    def own(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the rows have behind it, which is nothing before the first update."""
        if self.keys is not None and self.values is not None:
            return self.keys, self.values
        keys, values = self._beginning
        return keys[:, :, :0], values[:, :, :0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        setattr(keys, _ATTRIBUTE, self._beginning)
        return keys, values

    def get_seq_length(self) -> int:
        return int(self._beginning[0].shape[2] + super().get_seq_length())


class _Kept(Exception):
    """The last layer has its keys and values, and what the model would make of them is for nobody."""


class _InOneRow(_Behind):
    """The same of rows one behind the other in one, where the beginning takes no columns; the last ends the pass."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, last: bool) -> None:
        super().__init__(keys, values)
        self._last = last

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = super().update(key_states, value_states, *args, **kwargs)
        if self._last:
            raise _Kept
        return found

    def get_seq_length(self) -> int:
        return int(self.own[0].shape[2])


def shared_prefix(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Prefix | None:
    """The longest beginning that all prompts share, computed once; None where that would not pay or cannot be.

    Every prompt keeps a token of its own, after which its answer begins.
    """
    first, last = (
        min(map(list, prompts)),
        max(map(list, prompts)),
    )  # what these two share, all that lie between them share
    common = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    length = min(common, *(len(prompt) - 1 for prompt in prompts))
    if len(prompts) < 2 or length < LEAST_PREFIX or not keeps_plain_cache(model):
        return None
    layers = remembered(model, first[:length])
    return Prefix(first[:length], [(layer.keys, layer.values) for layer in layers])


def _nothing_shared(model: PreTrainedModel) -> Prefix:
    """The beginning of prompts that have none."""
    layers = remembered(model, [0])
    return Prefix([], [(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in layers])


@contextlib.contextmanager
def kept_once(model: PreTrainedModel, prefix: Prefix | None) -> Iterator[Prefix | None]:
    """The same prefix, which rows have in common meanwhile, where the model answers alike so.

    Args:
        model: in evaluation mode, one that ``takes_others_in``.
        prefix: of its own making. None becomes one without tokens where prompts can be read without padding.
    """
    base = base_of(model)
    before = attentions_of(base)
    fits = attention_of(base) in ("sdpa", SEGMENTED) and takes_attention_functions(base)
    if not fits or (prefix is None and device_of(model).type != "cpu"):
        yield prefix
        return
    beginning = _nothing_shared(model) if prefix is None else prefix
    AttentionInterface.register(BEHIND, attend_behind)
    AttentionMaskInterface.register(BEHIND, sdpa_mask)
    base.set_attn_implementation(BEHIND)
    try:
        known = _known.setdefault(base, {})
        shares = beginning.length > 0
        if shares not in known:
            with attributes_kept(model):
                known[shares] = _answers_alike(model, beginning)
        yield replace(beginning, once=True) if known[shares] else prefix
    finally:
        base.set_attn_implementation(before)


def attend_behind(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segment_lengths: Sequence[int] | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa over a shared beginning and what each row has behind it.

    Args:
        module: the attention layer.
        query: [rows, heads, tokens, size].
        key: [rows, key heads, tokens behind the beginning, size], as a cache of ``Prefix`` hands it out; value
            likewise. Keys of any other cache are all there are.
        attention_mask: [rows, 1, tokens, tokens of the beginning and behind it], True for what is seen; None for all.
        segment_lengths: where rows stand one behind the other in one, the tokens of each.
        **keywords: scaling, dropout and whatever else the layer hands on.
    """
    beginning = getattr(key, _ATTRIBUTE, None)
    altered = any(keywords.get(name) is not None for name in _ALTERING)
    scaling = keywords.get("scaling")
    if beginning is not None and segment_lengths is not None:
        if altered:
            raise ValueError(f"{type(module).__name__} alters scores")
        return _attend_in_one_row(query, key, value, beginning, segment_lengths, scaling), None
    if beginning is not None and beginning[0].shape[2]:
        says_what_is_seen = attention_mask is None or attention_mask.dtype == torch.bool
        if query.shape[2] == 1 and query.dtype == torch.float32 and says_what_is_seen and not altered:
            return _attend_with_one_token(query, key, value, beginning, attention_mask, scaling), None
        key, value = (
            torch.cat([whole.expand(len(query), -1, -1, -1), own], dim=2)
            for whole, own in zip(beginning, (key, value), strict=True)
        )
    attended: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)
    return attended


def _attend_with_one_token(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beginning: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """The same for one token of each row: a product with the beginning serves all rows, and nothing is copied.

    Returns:
        [rows, 1, heads, size].
    """
    (rows, heads, _, size), (_, groups, behind, _) = query.shape, key.shape
    keys, values = (whole[0] for whole in beginning)
    length = keys.shape[1]
    grouped = query.reshape(rows, groups, heads // groups, size) * (size**-0.5 if scaling is None else scaling)
    own = grouped @ key.transpose(2, 3)
    if mask is not None:
        own = own.masked_fill(~mask[..., length:], float("-inf"))

    def by_group(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, 1).reshape(groups, rows * (heads // groups), -1)

    def by_row(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(groups, rows, heads // groups, -1).transpose(0, 1)

    shared = by_row(by_group(grouped) @ keys.transpose(1, 2))
    weights, rest = torch.cat([shared, own], dim=3).softmax(dim=3).split([length, behind], dim=3)
    attended: torch.Tensor = rest @ value + by_row(by_group(weights) @ values)
    return attended.reshape(rows, 1, heads, value.shape[3])


def _attend_in_one_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beginning: tuple[torch.Tensor, torch.Tensor],
    lengths: Sequence[int],
    scaling: float | None,
) -> torch.Tensor:
    """The same for rows one behind the other, each by itself.

    Returns:
        [1, tokens, heads, size].
    """
    before, longest = beginning[0].shape[2], max(lengths)
    hidden = torch.ones(longest, before + longest, dtype=torch.bool, device=query.device).triu(before + 1)
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
    parts = []
    split = (whole.split(list(lengths), dim=2) for whole in (query, key, value))
    for own, own_keys, own_values in zip(*split, strict=True):
        length = own.shape[2]
        if length:
            seen = None if not before or is_square(before, length) else mask[:length, : before + length]
            keys, values = own_keys, own_values
            if before:
                keys, values = (torch.cat(both, dim=2) for both in zip(beginning, (keys, values), strict=True))
            parts.append(attend_to_chain(own, keys, values, seen, scaling=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _answers_alike(model: PreTrainedModel, prefix: Prefix) -> bool:
    """Whether two rows, one of them padded, have the logits that they have with copies."""
    try:
        copied, once = _logits(model, prefix), _logits(model, replace(prefix, once=True))
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):  # it hands on other things than we know
        return False
    embedding: Any = model.get_input_embeddings()
    rounding = max(4 * torch.finfo(embedding.weight.dtype).eps, LEAST_DIFFERENCE)
    return bool((once - copied).abs().mean() <= rounding * copied.std())


def _logits(model: PreTrainedModel, prefix: Prefix) -> torch.Tensor:
    """Logits behind three and behind six tokens after the prefix, [2, words], the last token in a pass of its own."""
    cache, own = DynamicCache(), ([1, 2, 3], [1, 2, 3, 4, 5, 6])
    beginning, at = list(prefix.tokens), prefix.columns
    prompts = [[*beginning, *tokens] for tokens in own]
    filled = prefix.begin(model, cache, prompts)
    pad = len(own[1]) - len(own[0])
    ids = torch.tensor([[*prompts[0][:at], *[0] * pad, *prompts[0][at:]], prompts[1]], device=device_of(model))
    mask = torch.ones_like(ids)
    mask[0, at : at + pad] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    last, forward = ids.shape[1] - 1, cast(Any, model)
    passes = [(last, last + 1)] if filled else [(prefix.length, last), (last, last + 1)]
    for start, end in passes:
        output = forward(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits
