"""How answers are generated: what decides a token and ends an answer, and how many are under way at once."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tunesmith.config.schema import EvaluationSection
from tunesmith.model.adapters import base_of
from tunesmith.model.answering import attributes_kept

KEPT_BYTES = 2**31
"""Keys and values that answers under way may keep where nobody has said how many are."""
MOST_ROWS = 64
"""Beyond so many, 90 million weights on a CPU gain nothing (measured), and answers wait for others longer."""
ROWS = 16
"""Of a model that keeps other things."""


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt to continue: its place among all prompts, its tokens, and the most tokens its answer may have."""

    index: int
    prompt: Sequence[int]
    budget: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated: how long, how many at once, how tokens are chosen and what ends an answer.

    Attributes:
        max_new_tokens: longest answer; less where the model's positions end earlier, which is said.
        batch_size: prompts of the longest length that are continued side by side. From 4 on there are more of shorter
            ones, as many as have no more tokens together. None: ``generate`` asks ``rows_within``.
        temperature: 0 is greedy; above 0 tokens are sampled.
        top_p: mass of nucleus sampling, used with a temperature above 0.
        seed: seed of the sampling; a prompt's random numbers depend on it and on the prompt's place alone.
        engine: ``auto`` and ``transformers`` generate in sorted batches; ``continuous`` and ``vllm``: see ``engines``.
        stop_token_ids: tokens that end an answer; None: the tokenizer's end token and the model's own.
        pad_token_id, bos_token_id: those of the tokenizer; ``generate`` fills them in.
    """

    max_new_tokens: int
    batch_size: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    engine: str = "auto"
    stop_token_ids: Sequence[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None

    @classmethod
    def of(cls, settings: EvaluationSection, seed: int, stop_token_ids: Iterable[int] | None = None) -> Decoding:
        """What the settings of an evaluation say."""
        return cls(
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.generation_batch_size,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=seed,
            engine=settings.generation_engine,
            stop_token_ids=None if stop_token_ids is None else sorted(set(stop_token_ids)),
        )

    @property
    def rows(self) -> int:
        """``batch_size``, once it is settled."""
        assert self.batch_size is not None
        return self.batch_size

    @property
    def stops(self) -> list[int]:
        """The tokens that end an answer, in order."""
        return sorted(self.stop_token_ids or ())

    @property
    def filler(self) -> int:
        """What stands where a row has no token: the padding token, or without one the first that ends an answer."""
        return self.pad_token_id if self.pad_token_id is not None else self.stops[0]

    def config(self, max_new_tokens: int) -> GenerationConfig:
        """The same for the library, greedy: ``_Sampled`` leaves it one token to choose from where it is not."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.stops,
            pad_token_id=self.filler,
            bos_token_id=self.bos_token_id,
            use_cache=True,
        )


def keeps_plain_cache(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers is keys and values by position, in every layer.

    False for recurrent and hybrid models, whose memory can neither be spread over rows nor shifted.
    """
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and "past_key_values" in _parameters(model)


def rows_within(model: PreTrainedModel, longest: int) -> int:
    """How many prompts may be continued side by side, of ``longest`` tokens with their answers; the model itself tells
    what it keeps of one."""
    if not keeps_plain_cache(model):
        return ROWS
    # one that shares the keys and values of another has none of its own
    layers = [layer for layer in remembered(model, [0]) if layer.is_initialized]
    kept: int = longest * sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    return max(1, min(MOST_ROWS, KEPT_BYTES // max(kept, 1)))


def remembered(model: PreTrainedModel, tokens: Sequence[int]) -> list[Any]:
    """What the layers of a model keep of a row of tokens."""
    cache = DynamicCache()  # without a configuration it keeps every position, also those outside a sliding window
    remember(model, tokens, cache)
    return list(cache.layers)


def remember(model: PreTrainedModel, tokens: Sequence[int], cache: DynamicCache, **more: Any) -> None:
    """Let a row of tokens pass through a model, for nothing but what it keeps of them in ``cache``.

    Args:
        more: what else the model is to be given.
    """
    spared = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
    forward: Callable[..., Any] = model  # an architecture's own arguments
    ids = torch.tensor([list(tokens)], device=device_of(model))
    with attributes_kept(model):
        forward(input_ids=ids, past_key_values=cache, use_cache=True, **spared, **more)


def random_draws(jobs: Sequence[Job], decoding: Decoding) -> torch.Tensor:
    """Numbers in [0, 1) by job and step; those of a job depend on the seed and on its place among all prompts alone."""
    rows = [np.random.default_rng([decoding.seed, job.index]).random(job.budget, dtype=np.float32) for job in jobs]
    return torch.tensor(np.stack(rows))


def model_positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model can address; None where its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def device_of(model: PreTrainedModel) -> torch.device:
    """Where the model takes its tokens."""
    embedding: Any = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    return device


def _parameters(model: PreTrainedModel) -> Any:
    return inspect.signature(base_of(model).forward).parameters


@contextlib.contextmanager
def only_settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Put ``settings`` in the place of the model's own, which transformers would use for whatever is unset; and let the
    model keep nothing of the rows for the next call, which may have others."""
    owners = [model, base_of(model)]
    before = [owner.generation_config for owner in owners]
    routers: Any = base_of(model).config.get_text_config()
    reports = getattr(routers, "output_router_logits", None)
    for owner in owners:
        owner.generation_config = settings
    if reports:
        routers.output_router_logits = False  # the loss they are for cannot follow a cache, and nobody reads it
    try:
        with attributes_kept(model):
            yield
    finally:
        if reports:
            routers.output_router_logits = reports
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config
