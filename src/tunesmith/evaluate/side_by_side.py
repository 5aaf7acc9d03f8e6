"""Prompts continued side by side, by the library's own ``generate``, without work that can be spared.

Rows whose answer has ended are let go, and other prompts take their place: their keys and values are put behind padding
in front, as those of any shorter prompt. What all of them begin with stands before the padding where it is kept once.
It does not decide which prompts meet, and it does not read answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from tunesmith.evaluate.beginning import Prefix
from tunesmith.evaluate.decoding import (
    Decoding,
    Job,
    device_of,
    keeps_plain_cache,
    model_positions,
    only_settings,
    random_draws,
)

REFILL = 4
"""Prompts come in when a fourth of the rows has ended: more often, and passes of their own would cost more than they
spare. Of fewer rows than that none are exchanged."""
SITTING = 128
"""Prompts of a sitting, for between twice and four times as many rows: what is begun side by side must be ended before
it is kept."""


def takes_others_in(model: PreTrainedModel, longest: int) -> bool:
    """Whether a prompt can join others that are under way: all that the model remembers are keys and values by
    position, of every position.

    Args:
        longest: tokens of the longest prompt with its answer.
    """
    if not keeps_plain_cache(model):
        return False
    windows = [getattr(layer, "sliding_window", longest) for layer in DynamicCache(config=model.config).layers]
    return min(windows, default=longest) >= longest


def sitting(
    model: PreTrainedModel, waiting: deque[Job], rows: int, decoding: Decoding, prefix: Prefix | None = None
) -> Iterator[tuple[dict[int, list[int]], bool]]:
    """Answers as they end, by the places of their prompts, and whether all rows have ended with them.

    Then the sitting is over, also if prompts are waiting still.

    Args:
        model: one that ``takes_others_in``.
        waiting: prompts, longest first; those that are begun are taken from it.
        rows: prompts side by side.
        decoding: how tokens are chosen, and when an answer ends.
        prefix: what all prompts begin with.
    """

    def begun(number: int) -> Rows:
        return Rows(model, [waiting.popleft() for _ in range(number)], decoding, prefix, DynamicCache())

    batch = begun(min(rows, len(waiting)))
    left = max(2 * rows, min(4 * rows, SITTING)) - len(batch.jobs)
    while batch.jobs:
        batch.advance(share=REFILL if left and waiting else 2)
        finished = batch.release()
        room = min(rows - len(batch.jobs), left, len(waiting)) if batch.jobs else 0
        if room:
            fresh = begun(room)
            left -= room
            if not fresh.filled:
                fresh.advance(most=1)
                finished |= fresh.release()
            if fresh.jobs:
                batch.join(fresh)
        yield finished, not batch.jobs


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
    cache = DynamicCache(config=model.config) if keeps_plain_cache(model) else None
    batch = Rows(model, jobs, decoding, prefix, cache)
    finished: dict[int, list[int]] = {}
    while batch.jobs:
        batch.advance(streamer=streamer)
        finished |= batch.release()
    return [finished[job.index] for job in jobs]


class Rows:
    """Prompts that are under way, each with what has been generated, padded on the left to one width.

    Args:
        prefix: keys and values of what all prompts begin with.
        cache: keeps the others; None where the model keeps what cannot be divided by rows.

    Attributes:
        jobs: the prompts.
        filled: whether the cache held all but their last tokens from the beginning.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        jobs: Sequence[Job],
        decoding: Decoding,
        prefix: Prefix | None,
        cache: DynamicCache | None,
    ) -> None:
        self.jobs = list(jobs)
        self._model, self._decoding, self._cache = model, decoding, cache
        width = max(len(job.prompt) for job in jobs)
        self._starts = torch.full((len(jobs),), width)  # column where the answer of each begins
        self._fixed = fixed = 0 if prefix is None else prefix.columns  # columns before the padding
        pads = [width - len(job.prompt) for job in jobs]
        padded = [
            [*job.prompt[:fixed], *[decoding.filler] * pad, *job.prompt[fixed:]]
            for pad, job in zip(pads, jobs, strict=True)
        ]
        self._ids = torch.tensor(padded, device=device_of(model))
        columns = torch.arange(width)
        seen = (columns < fixed) | (columns >= fixed + torch.tensor(pads)[:, None])
        self._mask = seen.long().to(self._ids.device)
        self._draws = random_draws(jobs, decoding).to(self._ids.device) if decoding.temperature > 0 else None
        self.filled = False
        if prefix is not None and cache is not None:
            self.filled = prefix.begin(model, cache, [job.prompt for job in jobs])

    def advance(self, *, share: int = 2, most: int | None = None, streamer: BaseStreamer | None = None) -> None:
        """Generate until one of ``share`` rows has ended, or until there are ``most`` tokens more.

        Position ids are left to transformers, which counts them from the attention mask: the first real token is 0.
        """
        width, positions = self._ids.shape[1], model_positions(self._model)
        room = max(int(start) + job.budget - width for start, job in zip(self._starts, self.jobs, strict=True))
        config = self._decoding.config(room if most is None else min(room, most))
        more: dict[str, Any] = {} if streamer is None else {"streamer": streamer}
        if self._draws is not None:
            more["logits_processor"] = LogitsProcessorList([_Sampled(self._draws, self._starts, self._decoding)])
        if self._cache is not None:
            more["past_key_values"] = self._cache
            last = None if positions is None else min(self._pads) + positions
            ended = _Ended(self._starts, self._budgets, self._decoding.stops, share, last)
            more["stopping_criteria"] = StoppingCriteriaList([ended])
        generator: Any = self._model
        with only_settings(self._model, config):
            self._ids = generator.generate(
                input_ids=self._ids, attention_mask=self._mask, generation_config=config, **more
            )
        self._mask = F.pad(self._mask, (0, self._ids.shape[1] - width), value=1)

    def release(self) -> dict[int, list[int]]:
        """The answers that have ended, by the places of their prompts; their rows are let go."""
        going, finished = [], {}
        stops = set(self._decoding.stops)
        for row, job in enumerate(self.jobs):
            answer = self._ids[row, self._starts[row] :].tolist()[: job.budget]
            if len(answer) == job.budget or stops.intersection(answer):
                finished[job.index] = answer
            else:
                going.append(row)
        self.jobs = [self.jobs[row] for row in going]
        if finished and self.jobs:
            self._keep(going)
        return finished

    def _keep(self, rows: list[int]) -> None:
        chosen = torch.tensor(rows, device=self._ids.device)
        self._ids, self._mask = self._ids[chosen], self._mask[chosen]
        self._starts = self._starts[rows]
        if self._draws is not None:
            self._draws = self._draws[chosen]
        assert self._cache is not None  # without one, all rows end before ``generate`` comes back
        self._cache.batch_select_indices(chosen)

    @property
    def _budgets(self) -> torch.Tensor:
        return torch.tensor([job.budget for job in self.jobs])

    @property
    def _pads(self) -> list[int]:
        """Padding in each row."""
        return [int(start) - len(job.prompt) for start, job in zip(self._starts, self.jobs, strict=True)]

    def join(self, others: Rows) -> None:
        """Take other rows in, which have been advanced as well; columns that are padding in all rows are cut off."""
        width = max(rows._ids.shape[1] - min(rows._pads) for rows in (self, others))
        for rows in (self, others):
            rows._widen(width - rows._ids.shape[1])
        self.jobs += others.jobs
        self._ids, self._mask = torch.cat([self._ids, others._ids]), torch.cat([self._mask, others._mask])
        self._starts = torch.cat([self._starts, others._starts])
        if self._draws is not None and others._draws is not None:
            both = (self._draws, others._draws)
            most = max(draws.shape[1] for draws in both)
            self._draws = torch.cat([F.pad(draws, (0, most - draws.shape[1])) for draws in both])
        for own, other in zip(self._layers, others._layers, strict=True):
            own.keys, own.values = torch.cat([own.keys, other.keys]), torch.cat([own.values, other.values])

    @property
    def _layers(self) -> list[Any]:
        """Layers of a cache that keeps every position."""
        assert self._cache is not None
        assert all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in self._cache.layers)
        return list(self._cache.layers)

    def _widen(self, columns: int) -> None:
        """Put padding where it stands, or cut it off where ``columns`` is negative."""
        self._ids, self._mask = (
            torch.cat([whole[:, : self._fixed], F.pad(whole[:, self._fixed :], (columns, 0), value=value)], dim=1)
            for whole, value in ((self._ids, self._decoding.filler), (self._mask, 0))
        )
        self._starts = self._starts + columns
        for layer in self._layers:
            layer.keys, layer.values = (F.pad(tensor, (0, 0, columns, 0)) for tensor in (layer.keys, layer.values))


class _Ended(StoppingCriteria):
    """Stops a batch when one of ``share`` answers has ended, by a stop token or by its length.

    Args:
        starts: columns where answers begin, [rows].
        budgets: the most tokens of each, [rows].
        stops: tokens that end an answer.
        share: 2 for half of them, and so on.
        last: columns after which a row has no position left.
    """

    def __init__(
        self, starts: torch.Tensor, budgets: torch.Tensor, stops: Sequence[int], share: int, last: int | None
    ) -> None:
        self._starts, self._ends, self._share, self._last = starts, starts + budgets, share, last
        self._stops = torch.tensor(stops)
        self._stopped = torch.zeros(len(starts), dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        # only the last column is new: a row that had ended before would not be here
        width = input_ids.shape[1]
        stops = self._stops = self._stops.to(input_ids.device)
        self._stopped = self._stopped.to(input_ids.device) | torch.isin(input_ids[:, -1], stops)
        ended = (self._stopped | (self._ends.to(input_ids.device) <= width)).sum()
        enough = self._share * ended >= len(input_ids)
        if self._last is not None and width >= self._last:
            enough = torch.ones_like(enough)
        return enough.expand(len(input_ids))


class _Sampled(LogitsProcessor):
    """Draws a token of every row and leaves the library nothing else to choose.

    The library draws for the whole batch at once, so that a row's tokens would depend on the rows beside it.
    """

    def __init__(self, numbers: torch.Tensor, starts: torch.Tensor, decoding: Decoding) -> None:
        self._draws, self._starts, self._temperature = numbers, starts.to(numbers.device), decoding.temperature
        self._nucleus = TopPLogitsWarper(decoding.top_p)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = self._nucleus(input_ids, scores / self._temperature)
        mass = scores.softmax(dim=-1).cumsum(dim=-1)
        whole = mass[:, -1:]
        # a row whose answer is complete may go on until others are; what it draws then is cut off
        step = (input_ids.shape[1] - self._starts).clamp(max=self._draws.shape[1] - 1)
        draw = self._draws.gather(1, step[:, None]) * whole
        draw = torch.minimum(
            draw, torch.nextafter(whole, torch.zeros_like(whole))
        )  # a product may be rounded up to all
        chosen = torch.searchsorted(mass, draw, right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
