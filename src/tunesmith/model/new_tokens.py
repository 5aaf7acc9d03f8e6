"""Tokens that a model does not know yet: added to its tokenizer, given rows in its embedding and head, and trained.

An adapter holds the trained rows alone (PEFT's ``trainable_token_indices``); its base has to be given the same rows
before they find their place, which ``make_room`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken

from tunesmith.config.schema import DataSection
from tunesmith.errors import ModelError
from tunesmith.model.parameters import ends_in
from tunesmith.notices import notify

if TYPE_CHECKING:  # a preview needs the tokenizer's part of this file and no library of models
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> None:
    """Give the tokenizer the tokens of the settings; those that it has already are said and stay as they are."""
    known = tokenizer.get_vocab()
    for names, special in ((data.new_tokens, False), (data.new_special_tokens, True)):
        there = [name for name in names if name in known]
        if there:
            notify(f"the tokenizer has {', '.join(there)} already; what is new for it is trained, and so are they")
        tokens = [AddedToken(name, normalized=False, special=special) for name in names if name not in known]
        tokenizer.add_tokens(tokens, special_tokens=special)


def new_token_ids(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> list[int]:
    """Ids of the tokens of the settings, in rising order."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[name] for name in (*data.new_tokens, *data.new_special_tokens))


def give_rows(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Rows of embedding and head for tokens that the model never saw, as the mean of all others: an average word."""
    make_room(model, max(ids) + 1)
    for layer in _layers(model).values():
        for value in (layer.weight, getattr(layer, "bias", None)):
            if value is not None and not value.is_meta:  # another process holds the values and hands them out
                with torch.no_grad(), _whole(value):
                    others = torch.ones(len(value), dtype=torch.bool, device=value.device)
                    others[list(ids)] = False
                    value[list(ids)] = value[others].float().mean(dim=0).to(value.dtype)


def _whole(value: torch.Tensor) -> AbstractContextManager[None]:
    """Where a weight is whole and may be changed: ZeRO stage 3 leaves a piece of it in each process."""
    if not hasattr(value, "ds_id"):
        return nullcontext()
    from deepspeed.zero import GatheredParameters

    gathered: AbstractContextManager[None] = GatheredParameters([value], modifier_rank=0)
    return gathered


def make_room(model: PreTrainedModel, num_rows: int) -> None:
    """Let embedding and head have ``num_rows`` rows at least; what is tied stays tied.

    Raises:
        ModelError: the library unties them.
    """
    if num_rows <= num_embeddings(model):
        return
    tied = model.get_output_embeddings() is not None and _tied(model)
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    if tied and not _tied(model):
        raise ModelError("the output head does not stay tied to the embedding when rows are added")


def trained_rows(model: PreTrainedModel, config: LoraConfig, ids: Sequence[int], *, spread: bool = False) -> None:
    """Have an adapter train the rows of these tokens, in every layer that has rows and is not trained whole anyway.

    Args:
        spread: weights will lie in pieces on several devices, where PEFT cannot train rows of a layer alone.

    Raises:
        ModelError: some layer would have to be, or embedding and head are one.
    """
    whole = config.modules_to_save or ()
    names = [name for name in _layers(model) if not any(ends_in(name, one) for one in whole)]
    if spread and (names or _tied(model)):
        tied = "embedding and head are one" if _tied(model) else f"{', '.join(names)} would not be trained whole"
        raise ModelError(
            f"new tokens do not go with this strategy: {tied}",
            remedy="take the strategy ddp or zero2, train all weights (use_lora: false)"
            + ("" if _tied(model) else ", or add it to modules_to_save"),
        )
    config.trainable_token_indices = {name: list(ids) for name in names} or None


def num_embeddings(model: PreTrainedModel | PeftModel) -> int:
    """Rows of the model's embedding, with an adapter on it or without."""
    embedding: Any = model.get_input_embeddings()
    if hasattr(embedding, "token_adapter"):
        embedding = embedding.token_adapter.get_base_layer()
    weight = embedding.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO stage 3 leaves a weight of no rows in each process


def rows_wanted(config: LoraConfig, num_rows: int) -> int:
    """How many rows a base needs for an adapter with new tokens.

    Args:
        num_rows: those that it has.

    Raises:
        ModelError: the adapter has no value for one of the rows that would have to be added.
    """
    given = config.trainable_token_indices or {}
    lists: Iterable[Sequence[int]] = given.values() if isinstance(given, Mapping) else [given]
    ids = {index for one in lists for index in one}
    wanted = max([num_rows, *(index + 1 for index in ids)])
    if wanted - num_rows > len(ids) or not ids.issuperset(range(num_rows, wanted)):
        raise ModelError(
            f"the base ends before token {num_rows}; the adapter, up to token {wanted - 1}, lacks some from there on",
            remedy="use the base that it was trained on",
        )
    return wanted


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    """Embedding and output head by name; of tied ones the embedding alone."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [embedding] if head is None or _tied(model) else [embedding, head]
    return {name: part for name, part in model.named_modules() if any(part is one for one in wanted)}


def _tied(model: PreTrainedModel) -> bool:
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return head is not None and head.weight is embedding.weight
