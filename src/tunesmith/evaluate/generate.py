"""Answers for many prompts at once, the same as one by one.

It does not render prompts and does not read meaning from the answers.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluate.beginning import kept_once, shared_prefix
from tunesmith.evaluate.company import Company, company
from tunesmith.evaluate.decoding import Decoding, Job, device_of, model_positions, rows_within
from tunesmith.evaluate.engines import check_engine, continuous, vllm
from tunesmith.evaluate.journal import Answer, Journal, identity
from tunesmith.evaluate.side_by_side import REFILL, continue_batch, sitting, takes_others_in
from tunesmith.evaluate.untouched import evaluating
from tunesmith.model.freed_memory import freed_memory_kept
from tunesmith.notices import notify

Part = tuple[list[tuple[int, list[int]]], bool]
"""Place and new token ids of prompts that have ended, and whether all that was begun beside them has ended as well."""
MORE = 4
"""Of short prompts at most so many times ``batch_size`` are side by side."""
Progress = Callable[[int, int], None]
"""Called with the number of finished prompts and the number of all prompts."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote after one prompt.

    Attributes:
        text: the new tokens as text, special tokens left out.
        token_ids: the new tokens, without the stop token.
        stopped: whether a stop token ended the answer; False means that the length limit did.
    """

    text: str
    token_ids: list[int]
    stopped: bool


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    names: Sequence[str] | None = None,
    journal: Journal | None = None,
    on_progress: Progress | None = None,
    on_text: Callable[[str], None] | None = None,
) -> list[Generation]:
    """Continue every prompt; answers come back in the order of the prompts.

    Prompts are sorted by length, longest first, padded on the left, and what all of them begin with is computed once.
    Where the model allows it, others take the places of those that have ended.
    An answer, greedy or sampled, does not depend on which prompts share its batch (up to rounding of the model's
    arithmetic). Decoding is exactly what ``decoding`` says: the model's own sampling defaults (repetition penalty,
    top_k ...) are not used. The model, its train or evaluation mode and every random number stream are as before
    afterwards.

    Args:
        prompts: token ids, special tokens included.
        decoding: how tokens are chosen and when an answer ends.
        names: where each prompt comes from, for error messages.
        journal: keeps finished answers; those that an interrupted call with the same model, prompts and decoding has
            left in it are not generated again. What is generated side by side is kept when all of it has ended. The
            caller removes it when the answers are safe.
        on_progress: told whenever answers have ended.
        on_text: given the text of the answer as it comes, where there is one prompt.

    Raises:
        DataError: a prompt is empty or leaves no position for an answer.
        ModelError: no stop token is known, the engine cannot run, or the batches do not fit into the device's memory.
    """
    check_engine(decoding.engine, decoding.temperature)
    decoding = _with_tokens(decoding, model, tokenizer)
    budgets = _budgets(prompts, decoding.max_new_tokens, model_positions(model), names)
    jobs = [Job(*each) for each in zip(range(len(prompts)), prompts, budgets, strict=True)]
    with evaluating(model), torch.no_grad():
        rows = decoding.batch_size or (rows_within(model, max(map(_tokens, jobs))) if len(jobs) > 1 else 1)
    decoding = replace(decoding, batch_size=rows)
    answers: dict[int, Answer] = {}
    if journal is not None:
        answers = journal.open(identity(model) | asdict(decoding) | {"jobs": [asdict(job) for job in jobs]})
    streamer = _Spoken(tokenizer, on_text) if on_text is not None else None
    unkept: dict[int, Answer] = {}
    with evaluating(model), torch.no_grad(), _memory(rows), freed_memory_kept(device_of(model)):
        for part, over in _parts(model, jobs, decoding, set(answers), streamer):
            unkept |= {index: _until_stop(ids, decoding.stops) for index, ids in part}
            answers |= unkept
            if over and journal is not None:
                journal.add(unkept.items())
            if over:
                unkept = {}
            if on_progress is not None:
                on_progress(len(answers), len(prompts))
    return [_generation(tokenizer, *answers[index]) for index in range(len(prompts))]


def _with_tokens(decoding: Decoding, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Decoding:
    """The same with every special token named.

    Raises:
        ModelError: no token would end an answer.
    """
    named = decoding.stop_token_ids
    stops = sorted(default_stop_token_ids(model, tokenizer) if named is None else named)
    if not stops:
        raise ModelError("the tokenizer has no end token, so no answer would ever stop", remedy="set eos_token")
    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    return replace(decoding, stop_token_ids=stops, pad_token_id=pad, bos_token_id=bos)


def _parts(
    model: PreTrainedModel, jobs: Sequence[Job], decoding: Decoding, done: set[int], streamer: TextStreamer | None
) -> Iterator[Part]:
    """What the engine finishes of the jobs that are not done."""
    waiting = [job for job in jobs if job.index not in done]
    if decoding.engine == "continuous":
        return ((part, True) for part in continuous(model, waiting, decoding))
    if decoding.engine == "vllm":
        return ((part, True) for part in vllm(model, waiting, decoding))
    return _sorted_batches(model, jobs, decoding, done, streamer)


class _Spoken(TextStreamer):
    """Hands on the words of one answer as soon as no later token can change them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


def default_stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token and those that the model's generation settings name besides it."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(token for token in [tokenizer.eos_token_id, *named] if token is not None))


def stop_token_ids(model: PreTrainedModel, builder: ExampleBuilder, row: Row) -> list[int]:
    """What ends an answer to rows like ``row``: the end of turn that the template taught, and what the model itself
    stops at."""
    return list(dict.fromkeys([*builder.stop_token_ids(row), *default_stop_token_ids(model, builder.tokenizer)]))


def _budgets(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, positions: int | None, names: Sequence[str] | None
) -> list[int]:
    budgets = []
    for index, prompt in enumerate(prompts):
        where = names[index] if names is not None else f"prompt {index + 1}"
        if not prompt:
            raise DataError("the prompt is empty", where=where)
        room = max_new_tokens if positions is None else positions - len(prompt)
        if room < 1:
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the model has {positions} positions, so no answer fits",
                where=where,
                remedy="shorten its text, or leave the row out",
            )
        budgets.append(min(max_new_tokens, room))
    short = sum(budget < max_new_tokens for budget in budgets)
    if short:
        notify(
            f"{short} of {len(prompts)} answers have room for fewer than {max_new_tokens} tokens (the least: "
            f"{min(budgets)}), because the model has {positions} positions"
        )
    return budgets


def _sorted_batches(
    model: PreTrainedModel,
    jobs: Sequence[Job],
    decoding: Decoding,
    done: set[int],
    streamer: TextStreamer | None = None,
) -> Iterator[Part]:
    """The jobs that are not done, longest prompts first.

    Who goes on after an interruption meets the same neighbours, and with them the same rounding: sittings end where
    they ended, and batches are formed from all jobs, done or not.
    """
    if done.issuperset(job.index for job in jobs):
        return
    beside = company(model, [job.prompt for job in jobs], decoding)
    batch_size = 1 if beside is Company.NONE else decoding.rows
    shared = shared_prefix(model, [job.prompt for job in jobs])
    longest = max(map(_tokens, jobs))
    if beside is Company.ANY and batch_size >= REFILL and len(jobs) > 1 and takes_others_in(model, longest):
        waiting = deque(sorted((job for job in jobs if job.index not in done), key=lambda job: -len(job.prompt)))
        with kept_once(model, shared) as prefix:
            while waiting:
                rows = _side_by_side(waiting, batch_size, longest, 0 if prefix is None else prefix.columns)
                for finished, over in sitting(model, waiting, rows, decoding, prefix):
                    yield list(finished.items()), over
        return
    for batch in _batches(jobs, batch_size, padded=beside is Company.ANY):
        if not done.issuperset(job.index for job in batch):
            ids = continue_batch(model, batch, decoding, shared, streamer)
            yield list(zip([job.index for job in batch], ids, strict=True)), True


def _tokens(job: Job) -> int:
    """The most that a prompt and its answer come to."""
    return len(job.prompt) + job.budget


def _side_by_side(jobs: Iterable[Job], batch_size: int, longest: int, shared: int) -> int:
    """How many of these prompts have no more tokens than ``batch_size`` of the longest; ``shared`` ones left out."""
    return min(batch_size * longest // (max(map(_tokens, jobs)) - shared), MORE * batch_size)


def _batches(jobs: Sequence[Job], batch_size: int, *, padded: bool = True) -> Iterator[list[Job]]:
    """The jobs of each batch, longest first; a batch has one budget, so no row lends from another.

    Args:
        padded: whether prompts of unequal length may share a batch.
    """
    batch: list[Job] = []
    for job in sorted(jobs, key=lambda job: -len(job.prompt)):
        other = batch and not padded and len(job.prompt) != len(batch[0].prompt)
        if batch and (len(batch) == batch_size or job.budget != batch[0].budget or other):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _until_stop(ids: list[int], stops: Sequence[int]) -> Answer:
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    return ids[:end], end is not None


def _generation(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], stopped: bool) -> Generation:
    text = str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return Generation(text=text, token_ids=token_ids, stopped=stopped)


@contextlib.contextmanager
def _memory(batch_size: int) -> Iterator[None]:
    """Say what to do when memory ends; the longest prompts come first, so that it ends early or not at all."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the device's memory does not hold {batch_size} prompts side by side", remedy="lower generation_batch_size"
        ) from error
