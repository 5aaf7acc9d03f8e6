"""One batch of prompts continued side by side, by the library's own ``generate``, without work that can be spared.

The beginning that all prompts share is computed once, and rows whose answer has ended are let go. It does not decide
which prompts form a batch, and it does not read answers.
"""

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
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer

from tunesmith.config.schema import EvaluationSection
from tunesmith.model.adapters import base_of

LEAST_PREFIX = 16
"""A shared beginning of fewer tokens is not worth a pass of its own."""


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
        batch_size: prompts that are continued side by side.
        temperature: 0 is greedy; above 0 tokens are sampled.
        top_p: mass of nucleus sampling, used with a temperature above 0.
        seed: seed of the sampling; a prompt's random numbers depend on it and on the prompt's place alone.
        engine: ``auto`` and ``transformers`` generate in sorted batches; ``continuous`` and ``vllm``: see ``engines``.
        stop_token_ids: tokens that end an answer; None: the tokenizer's end token and the model's own.
        pad_token_id, bos_token_id: those of the tokenizer; ``generate`` fills them in.
    """

    max_new_tokens: int
    batch_size: int
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


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of tokens that all prompts begin with: for each layer two tensors [1, heads, length, size]."""

    length: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def spread(self, model: PreTrainedModel, pads: Sequence[int]) -> DynamicCache:
        """The cache of a batch after its first ``length`` columns: row ``i`` begins with ``pads[i]`` padding tokens.

        It is what a pass over these columns would leave, so the library goes on from it as after any left padding.
        What stands in padded columns does not matter, since attention is masked there.
        """
        cache = DynamicCache(config=model.config)
        columns = torch.arange(self.length) - torch.tensor(pads)[:, None]
        for number, tensors in enumerate(self.layers):
            index = columns.clamp(min=0).to(tensors[0].device)
            keys, values = (tensor[0][:, index].transpose(0, 1) for tensor in tensors)
            cache.update(keys, values, number)
        return cache


def keeps_plain_cache(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers is keys and values by position, in every layer.

    False for recurrent and hybrid models, whose memory can neither be spread over rows nor shifted.
    """
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and "past_key_values" in _parameters(model)


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
    cache = DynamicCache()  # without a configuration it keeps every position, also those outside a sliding window
    spared = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
    forward: Callable[..., Any] = model  # an architecture's own arguments
    forward(
        input_ids=torch.tensor([first[:length]], device=device_of(model)),
        past_key_values=cache,
        use_cache=True,
        **spared,
    )
    layers: list[Any] = cache.layers
    return Prefix(length, [(layer.keys, layer.values) for layer in layers])


def continue_batch(
    model: PreTrainedModel,
    jobs: Sequence[Job],
    decoding: Decoding,
    prefix: Prefix | None,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """New token ids of every job, padded behind their stop token; the jobs have one budget.

    Whenever half of the rows have ended they are dropped from the batch, and the others go on from the same cache.
    """
    budget = jobs[0].budget
    width = max(len(job.prompt) for job in jobs)
    pads = [width - len(job.prompt) for job in jobs]
    padded = [[decoding.filler] * pad + list(job.prompt) for pad, job in zip(pads, jobs, strict=True)]
    ids = torch.tensor(padded, device=device_of(model))
    mask = (torch.arange(width) >= torch.tensor(pads)[:, None]).long().to(ids.device)
    draws = _draws(jobs, decoding).to(ids.device) if decoding.temperature > 0 else None
    cache = prefix.spread(model, pads) if prefix is not None else None
    if cache is None and keeps_plain_cache(model):
        cache = DynamicCache(config=model.config)
    rows = list(range(len(jobs)))
    answers: list[list[int]] = [[] for _ in jobs]
    generator: Any = model
    while rows:
        # Position ids are left to transformers, which counts them from the attention mask: the first real token is 0.
        config = decoding.config(budget - ids.shape[1] + width)
        more: dict[str, Any] = {} if streamer is None else {"streamer": streamer}
        if draws is not None:
            more["logits_processor"] = LogitsProcessorList([_Sampled(draws[rows], width, decoding)])
        if cache is not None:
            more["past_key_values"] = cache
            more["stopping_criteria"] = StoppingCriteriaList([_HalfEnded(width, decoding.stops)])
        with only_settings(model, config):
            ids = generator.generate(input_ids=ids, attention_mask=mask, generation_config=config, **more)
        new = ids[:, width:].tolist()
        for row, answer in zip(rows, new, strict=True):
            answers[row] = answer
        going = (
            []
            if len(new[0]) == budget
            else [place for place, answer in enumerate(new) if not set(answer) & set(decoding.stops)]
        )
        rows = [rows[place] for place in going]
        if rows:
            assert cache is not None  # only _HalfEnded stops a batch before all of it has ended
            ids = ids[going]
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)[going]
            cache.batch_select_indices(torch.tensor(going, device=ids.device))
    return answers


class _HalfEnded(StoppingCriteria):
    """Stops a batch when half of its answers have ended."""

    def __init__(self, start: int, stops: Sequence[int]) -> None:
        self._start, self._stops = start, stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        stops = torch.tensor(self._stops, device=input_ids.device)
        ended = torch.isin(input_ids[:, self._start :], stops).any(dim=1)
        return (2 * ended.sum() >= len(ended)).expand(len(ended))


class _Sampled(LogitsProcessor):
    """Draws a token of every row and leaves the library nothing else to choose.

    The library draws for the whole batch at once, so that a row's tokens would depend on the rows beside it.
    """

    def __init__(self, draws: torch.Tensor, start: int, decoding: Decoding) -> None:
        self._draws, self._start, self._temperature = draws, start, decoding.temperature
        self._nucleus = TopPLogitsWarper(decoding.top_p)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = self._nucleus(input_ids, scores / self._temperature)
        mass = scores.softmax(dim=-1).cumsum(dim=-1)
        whole = mass[:, -1:]
        draw = self._draws[:, input_ids.shape[1] - self._start, None] * whole
        draw = torch.minimum(
            draw, torch.nextafter(whole, torch.zeros_like(whole))
        )  # a product may be rounded up to all
        chosen = torch.searchsorted(mass, draw, right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _draws(jobs: Sequence[Job], decoding: Decoding) -> torch.Tensor:
    """Numbers in [0, 1) by job and step; those of a job depend on the seed and on its place among all prompts alone."""
    rows = [np.random.default_rng([decoding.seed, job.index]).random(job.budget, dtype=np.float32) for job in jobs]
    return torch.tensor(np.stack(rows))


def device_of(model: PreTrainedModel) -> torch.device:
    """Where the model takes its tokens."""
    embedding: Any = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    return device


def _parameters(model: PreTrainedModel) -> Any:
    return inspect.signature(base_of(model).forward).parameters


@contextlib.contextmanager
def only_settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Put ``settings`` in the place of the model's own, which transformers would use for whatever is unset."""
    owners = [model, base_of(model)]
    before = [owner.generation_config for owner in owners]
    routers: Any = base_of(model).config.get_text_config()
    reports = getattr(routers, "output_router_logits", None)
    for owner in owners:
        owner.generation_config = settings
    if reports:
        routers.output_router_logits = False  # the loss they are for cannot follow a cache, and nobody reads it
    try:
        yield
    finally:
        if reports:
            routers.output_router_logits = reports
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config
