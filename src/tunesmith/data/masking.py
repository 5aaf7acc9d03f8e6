"""Rendered text to an example: ids and labels. This is the only place that decides a label.

Labels follow from the spans of the text and from nothing else: generated ids are never searched. The model shifts
labels by itself; here ``labels[t]`` belongs to ``input_ids[t]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tunesmith.data.conversation import ASSISTANT
from tunesmith.data.encoding import Encoder, Piece
from tunesmith.data.rendered import CONTEXT, Rendered, Span
from tunesmith.errors import DataError

IGNORE_INDEX = -100
"""The label of a token without loss, as torch's cross entropy and transformers know it."""
GIVEN = "given"
"""Role of an assistant's words before ``completion_start``: answered, but without loss."""

LossOn = Literal["completion", "assistant", "last_assistant", "all"]
TooLong = Literal["error", "drop", "truncate_prompt", "truncate_completion", "split"]


@dataclass(frozen=True, slots=True)
class Example:
    """One finished training example.

    ``input_ids`` and ``labels`` have the same length. ``num_prompt_tokens`` of them are what inference feeds before the
    last answer, ``num_head_tokens`` what stands before the first. ``cut`` names how a too long row was shortened, or is
    None; ``full_length`` is its length before that, in tokens. ``weights``, where there are any, belong to the labels:
    the loss of a token is multiplied by its weight; None means 1 everywhere.
    """

    input_ids: list[int]
    labels: list[int]
    origin: str
    num_prompt_tokens: int
    num_head_tokens: int
    full_length: int
    cut: str | None = None
    weights: list[float] | None = None

    @property
    def num_trained_tokens(self) -> int:
        """Tokens with loss."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


class TooLongError(DataError):
    """An example is longer than ``max_length`` and may not be shortened; ``needed`` tokens would do."""

    def __init__(self, what: str, *, where: str, remedy: str, needed: int) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.needed = needed


def encode(rendered: Sequence[Rendered], encoder: Encoder) -> list[tuple[list[int], list[int]]]:
    """Ids of each text without begin and end token, and the number of ids up to the end of each of its spans.

    The ids of a text up to the start of an assistant turn are those which the text up to there has by itself, so that
    inference feeds what was trained. Where a tokenizer would merge over that border, the parts are encoded separately.
    """
    plans = [_slices(item, encoder) for item in rendered]
    pieces = [
        Piece(item.text[part.start : part.end], _clip(item.protected, part.start, part.end), part.continues)
        for item, plan in zip(rendered, plans, strict=True)
        for part in plan
    ]
    ids = iter(encoder.batch(pieces))
    return [_assemble(item, plan, ids, encoder) for item, plan in zip(rendered, plans, strict=True)]


class _Slice(NamedTuple):
    """Characters of a text that are encoded in one piece up to the end of a span.

    They are all from the last border that nothing merges over; or the span alone, where its ids are known to be those
    of a continuation, which saves encoding what stands before it a second time.
    """

    start: int
    end: int
    continues: bool


def _slices(rendered: Rendered, encoder: Encoder) -> list[_Slice]:
    """The slices of the text to encode, one for the end of each span.

    A slice starts at the last border that follows a special token: no tokenizer of this kind merges over one.
    """
    slices, anchor = [], 0
    guarded = {end for _, end in rendered.protected}
    for span in rendered.spans:
        continues = encoder.continues(rendered.text[anchor : span.start], span.start in guarded)
        slices.append(_Slice(span.start if continues else anchor, span.end, continues))
        if span.end not in guarded and encoder.ends_with_special(rendered.text[anchor : span.end]):
            anchor = span.end
    return slices


def _assemble(
    rendered: Rendered, plan: Sequence[_Slice], encoded: Iterator[list[int]], encoder: Encoder
) -> tuple[list[int], list[int]]:
    """Put the ids of the slices together, span after span."""
    fixed: list[int] = []
    window: list[int] = []
    counts: list[int] = []
    anchor = 0
    for span, part in zip(rendered.spans, plan, strict=True):
        ids = next(encoded)
        if part.continues:
            window = window + ids
        else:
            if part.start != anchor:
                fixed, window, anchor = fixed + window, [], part.start
            if ids[: len(window)] == window:
                window = ids
            else:
                piece = rendered.text[span.start : span.end]
                continuing = Piece(piece, _clip(rendered.protected, span.start, span.end), continues=True)
                window = window + encoder.batch([continuing])[0]
        counts.append(len(fixed) + len(window))
    return fixed + window, counts


def _clip(protected: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    return [(max(s, start) - start, min(e, end) - start) for s, e in protected if s < end and e > start]


def prompt_ids(rendered: Rendered, encoder: Encoder) -> list[int]:
    """The ids that inference feeds for a rendered prompt."""
    (ids, _counts) = encode([rendered], encoder)[0]
    return encoder.begin(rendered.begins) + ids


def make_example(
    rendered: Rendered, encoded: tuple[list[int], list[int]], encoder: Encoder, origin: str, loss_on: LossOn
) -> Example:
    """Ids with begin and end token, and their labels.

    Args:
        rendered: ends with an assistant span.
        encoded: what ``encode`` returned for it.
        loss_on: which spans carry loss; the first token never does, for nothing predicts it.

    Raises:
        DataError: not one token would carry loss, or the begin token comes twice.
    """
    ids, counts = encoded
    begin = encoder.begin(rendered.begins)
    input_ids = begin + ids
    remedy = "remove it from the row or the template, or set add_bos: false"
    _refuse_two_begins(input_ids, encoder, origin, remedy)
    labels = [IGNORE_INDEX] * len(input_ids)
    weights: list[float] | None = None
    num_prompt, num_head = len(begin), None
    done = len(begin)
    for span, count in zip(rendered.spans, counts, strict=True):
        start, done = done, len(begin) + count
        if span.role == CONTEXT:
            num_prompt = done
        elif num_head is None:
            num_head = start
        if span.weight > 0 and has_loss(span, rendered, loss_on):
            labels[start:done] = input_ids[start:done]
            if span.weight != 1.0:
                weights = weights or [1.0] * len(input_ids)
                weights[start:done] = [span.weight] * (done - start)
    if rendered.ends:
        last = rendered.spans[-1].weight
        input_ids.append(encoder.eos_token_id)
        labels.append(encoder.eos_token_id if last > 0 else IGNORE_INDEX)
        if weights is not None or last not in (0.0, 1.0):
            weights = [*(weights or [1.0] * done), last or 1.0]
    labels[0] = IGNORE_INDEX
    if labels.count(IGNORE_INDEX) == len(labels):
        raise DataError("not one token of this row would carry loss", where=origin, remedy="give it a completion")
    assert num_head is not None
    return Example(
        input_ids,
        labels,
        origin,
        num_prompt_tokens=num_prompt,
        num_head_tokens=num_head,
        full_length=len(input_ids),
        weights=weights,
    )


def example_of_ids(
    input_ids: list[int],
    trained: list[bool] | None,
    encoder: Encoder,
    origin: str,
    loss_on: LossOn,
    weight: float = 1.0,
) -> Example:
    """The example of a row that is tokens already; nothing is added to its ids.

    Args:
        input_ids: the row's ids.
        trained: whether each carries loss; None where the row does not say.
        encoder: of the tokenizer that made the ids.
        origin: the row's address.
        loss_on: ``all`` is what rows need that do not say it; the first token never carries loss.
        weight: what the loss of the whole row is multiplied by.

    Raises:
        DataError: nothing says which tokens carry loss, or none would; or the begin token comes twice.
    """
    _refuse_two_begins(input_ids, encoder, origin, "make the ids without the second one")
    if trained is None and loss_on != "all":
        raise DataError(
            "nothing says which tokens carry loss",
            where=origin,
            remedy="give labels, completion_mask or assistant_masks, or set loss_on: all",
        )
    chosen = [True] * len(input_ids) if trained is None else trained
    if loss_on == "all" and not all(chosen[1:]):
        raise DataError(
            "loss_on is all, and the row leaves tokens out", where=origin, remedy="leave loss_on unset to obey the row"
        )
    labels = [number if told else IGNORE_INDEX for number, told in zip(input_ids, chosen, strict=True)]
    labels[0] = IGNORE_INDEX
    if labels.count(IGNORE_INDEX) == len(labels):
        raise DataError("not one token of this row would carry loss", where=origin, remedy="say which tokens do")
    head = chosen.index(True)
    begins = int(input_ids[0] == encoder.bos_token_id)
    before_last = max(at for at, told in enumerate(chosen) if told and not (at and chosen[at - 1]))
    return Example(
        input_ids,
        labels,
        origin,
        num_prompt_tokens=max(before_last, begins),
        num_head_tokens=max(head, begins),
        full_length=len(input_ids),
        weights=None if weight == 1.0 else [weight] * len(input_ids),
    )


def _refuse_two_begins(input_ids: list[int], encoder: Encoder, origin: str, remedy: str) -> None:
    if encoder.bos_token_id != encoder.eos_token_id and input_ids[:2] == [encoder.bos_token_id] * 2:
        raise DataError(f"begins with the begin token {encoder.tokenizer.bos_token} twice", where=origin, remedy=remedy)


def has_loss(span: Span, rendered: Rendered, loss_on: LossOn) -> bool:
    """Whether the tokens of a span carry loss, its weight aside."""
    if loss_on == "all":
        return True
    return span.role == ASSISTANT and (span is rendered.spans[-1] or loss_on != "last_assistant")


def is_weightless(rendered: Rendered, loss_on: LossOn) -> bool:
    """Whether every span that would carry loss has the weight 0, so that the row teaches nothing on purpose."""
    weights = [span.weight for span in rendered.spans if has_loss(span, rendered, loss_on)]
    return bool(weights) and not any(weights)


def start_after(rendered: Rendered, marker: str, encoder: Encoder, origin: str) -> Rendered:
    """The same text with loss only after the last match of ``marker``, and never inside the prompt.

    Raises:
        DataError: there is no match.
    """
    matches = [
        match.end()
        for match in re.finditer(re.escape(marker), rendered.text)
        if not any(start < match.end() and match.start() < end for start, end in rendered.protected)
    ]
    if not matches:
        raise DataError(
            f"completion_start {marker!r} (token ids {encoder(marker)}) does not occur in the rendered text",
            where=origin,
            remedy="set it to text that the template writes before the answer, or leave it unset",
        )
    first = matches[-1]
    spans: list[Span] = []
    for span in rendered.spans:
        if span.role == CONTEXT or span.start >= first:
            spans.append(span)
        elif span.end <= first:
            spans.append(replace(span, role=GIVEN))
        else:
            spans += [replace(span, end=first, role=GIVEN), replace(span, start=first)]
    return replace(rendered, spans=tuple(spans))


def start_after_thoughts(rendered: Rendered, marker: str) -> Rendered:
    """The same text with loss in each answer only after the last ``marker`` in it; answers without one keep theirs."""
    spans: list[Span] = []
    for span in rendered.spans:
        at = rendered.text.rfind(marker, span.start, span.end) if span.role == ASSISTANT else -1
        if at < 0:
            spans.append(span)
        else:
            border = at + len(marker)
            spans += [replace(span, end=border, role=GIVEN), replace(span, start=border)]
    return replace(rendered, spans=tuple(spans))


def num_unknown(example: Example, rendered: Rendered | None, encoder: Encoder) -> int:
    """Trained tokens that stand for words which the tokenizer does not know, and not for its unknown token as text."""
    unknown = encoder.unk_token_id
    found = example.labels.count(unknown) if unknown is not None else 0
    if not found or example.cut is not None or rendered is None:
        return found if unknown != encoder.eos_token_id else 0
    text = str(encoder.tokenizer.unk_token)
    meant = sum(
        rendered.text.count(text, span.start, span.end) for span in rendered.spans if span.role == ASSISTANT
    ) - sum(rendered.text[start:end] == text for start, end in rendered.protected)
    return max(0, found - max(0, meant) - (rendered.ends and unknown == encoder.eos_token_id))


def fit(example: Example, max_length: int, too_long: TooLong, encoder: Encoder) -> Example | None:
    """The example within ``max_length`` tokens; None when the policy drops it. What is split goes through ``split``.

    ``truncate_prompt`` removes the head of the prompt behind the begin token and nothing else; ``truncate_completion``
    removes the tail of the completion and keeps the end token, with its loss, in the last place.

    Raises:
        TooLongError: the policy is ``error``, or what may not be cut is too long by itself.
    """
    length = len(example.input_ids)
    if length <= max_length:
        return example
    if too_long == "drop":
        return None
    if too_long == "error":
        raise TooLongError(
            f"{length} tokens, max_length is {max_length}",
            where=example.origin,
            remedy=f"set max_length: {length} or more, or too_long to drop, truncate_prompt or truncate_completion",
            needed=length,
        )
    shorten = _without_head if too_long == "truncate_prompt" else _without_tail
    return shorten(example, max_length, encoder)


def _without_head(example: Example, max_length: int, encoder: Encoder) -> Example:
    ids, labels = example.input_ids, example.labels
    kept = 1 if ids[0] == encoder.bos_token_id and example.num_head_tokens > 0 else 0
    excess = len(ids) - max_length
    needed = len(ids) - (example.num_head_tokens - kept)
    if needed > max_length:
        raise TooLongError(
            f"{needed} tokens remain when the whole prompt is cut, max_length is {max_length}",
            where=example.origin,
            remedy=f"set max_length: {needed} or more, or too_long: drop",
            needed=needed,
        )
    return replace(
        example,
        input_ids=ids[:kept] + ids[kept + excess :],
        labels=labels[:kept] + labels[kept + excess :],
        weights=None if example.weights is None else example.weights[:kept] + example.weights[kept + excess :],
        num_prompt_tokens=example.num_prompt_tokens - excess,
        num_head_tokens=example.num_head_tokens - excess,
        cut="truncate_prompt",
    )


def split(example: Example, max_length: int, encoder: Encoder) -> list[Example]:
    """A text with loss on everything as several examples of at most ``max_length`` tokens.

    Each token carries loss in exactly one of them. A piece begins with the begin token where the whole does, else with
    the last token of the piece before, without loss.

    Raises:
        TooLongError: ``max_length`` is less than 2.
    """
    ids, labels, weights = example.input_ids, example.labels, example.weights or [1.0] * len(example.input_ids)
    if max_length < 2:
        raise TooLongError(
            "no text can be split so small", where=example.origin, remedy="set max_length: 2 or more", needed=2
        )
    begins = ids[0] == encoder.bos_token_id
    pieces: list[Example] = []
    for start in range(1, len(ids), max_length - 1):
        end = start + max_length - 1
        pieces.append(
            replace(
                example,
                input_ids=[ids[0] if begins else ids[start - 1], *ids[start:end]],
                labels=[IGNORE_INDEX, *labels[start:end]],
                weights=None if example.weights is None else [1.0, *weights[start:end]],
                num_prompt_tokens=1,
                num_head_tokens=1,
                cut="split",
            )
        )
    return pieces


def _without_tail(example: Example, max_length: int, encoder: Encoder) -> Example:
    end = example.input_ids[-1]
    ids, labels = example.input_ids[: max_length - 1], example.labels[: max_length - 1]
    while labels and labels[-1] == IGNORE_INDEX:  # nothing is learnt from a question whose answer is gone
        ids, labels = ids[:-1], labels[:-1]
    if len(ids) <= example.num_head_tokens:
        needed = example.num_head_tokens + 2
        raise TooLongError(
            f"the prompt alone has {example.num_head_tokens} tokens, max_length is {max_length}",
            where=example.origin,
            remedy=f"set max_length: {needed} or more, or too_long to drop or truncate_prompt",
            needed=needed,
        )
    weights = None if example.weights is None else example.weights[: len(ids)]
    if ids[-1] != end:
        ids, labels = [*ids, end], [*labels, end]
        weights = None if weights is None else [*weights, weights[-1]]
    prompt = min(example.num_prompt_tokens, len(ids))
    return replace(
        example, input_ids=ids, labels=labels, weights=weights, num_prompt_tokens=prompt, cut="truncate_completion"
    )
