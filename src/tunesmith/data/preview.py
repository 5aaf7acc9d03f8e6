"""Batches and rows taken apart into tokens that a person can read: text, whether it is trained, its weight.

It reads what was encoded and collated and decides no label; how tokens are shown is the business of others.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.config.schema import DataSection
from tunesmith.data.batching import BatchRows
from tunesmith.data.collate import Collator
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.ledger import Ledger, SourceAccount
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.row import Row
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Which = Literal["cut", "dropped", "longest"]

NO_LIMIT = 2**31
"""A ``max_length`` that nothing exceeds, for rows that are shown whole."""
LONGEST_CHARACTER = 8
"""Tokens that can be pieces of one character; more of them without a character are shown as they are."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an example.

    Attributes:
        id: its id.
        text: the characters that it completes; empty for the first pieces of a character that several tokens make up.
        trained: whether it carries loss.
        weight: how much it counts in the loss; 0 where it carries none.
        ends: whether generation stops at it (the end token, or the template's end of a turn).
        special: whether it is a control token and not text.
    """

    id: int
    text: str
    trained: bool
    weight: float
    ends: bool
    special: bool


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """The tokens of one example, where it comes from, and what is to be known about it."""

    source: str
    tokens: tuple[Token, ...]
    note: str | None = None

    @property
    def num_trained(self) -> int:
        """Tokens with loss."""
        return sum(token.trained for token in self.tokens)

    @property
    def end_is_trained(self) -> bool:
        """Whether the last trained token is one at which generation stops."""
        trained = [token for token in self.tokens if token.trained]
        return bool(trained) and trained[-1].ends

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``tunesmith preview --json`` prints it."""
        tokens = [
            {"id": token.id, "text": token.text, "trained": token.trained, "weight": token.weight}
            for token in self.tokens
        ]
        note = {} if self.note is None else {"note": self.note}
        return {"source": self.source, "tokens": tokens} | note


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Size of a batch: rows and columns of its tensors, and how many places are padding."""

    rows: int
    length: int
    padding: int


class TokenReader:
    """Ids to readable tokens.

    Args:
        tokenizer: any tokenizer of transformers.
        stop_token_ids: ids at which generation stops.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_token_ids)
        self._specials = frozenset(
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        ) | frozenset(tokenizer.all_special_ids)

    def tokens(
        self, input_ids: Sequence[int], labels: Sequence[int], weights: Sequence[float] | None = None
    ) -> tuple[Token, ...]:
        """The tokens of an example; ``weights`` None means that every labelled token counts 1."""
        counted = weights if weights is not None else [1.0] * len(labels)
        return tuple(
            Token(
                number,
                text,
                label != IGNORE_INDEX,
                float(weight) if label != IGNORE_INDEX else 0.0,
                number in self._stops,
                number in self._specials,
            )
            for number, text, label, weight in zip(input_ids, self.texts(input_ids), labels, counted, strict=True)
        )

    def texts(self, input_ids: Sequence[int]) -> list[str]:
        """The text of every token, read in its context, so that together they are the text of all."""
        texts: list[str] = []
        start = done = 0  # ids from start to done are context for what comes next
        before = ""
        for end in range(1, len(input_ids) + 1):
            upto = self._decode(input_ids[start:end])
            give_up = end == len(input_ids) or end - done >= LONGEST_CHARACTER
            if upto.endswith("\ufffd") and not give_up:
                texts.append("")
                continue
            joined = upto.startswith(before)
            texts.append(upto[len(before) :] if joined else self._decode(input_ids[done:end]))
            start, done = done, end
            before = self._decode(input_ids[start:done])
        return texts

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def rows_of_batch(batch: Mapping[str, Any], reader: TokenReader) -> list[PreviewRow]:
    """The examples of a collated batch, whatever its layout; padding is left out."""
    pieces = _padded_pieces(batch) if "attention_mask" in batch else _joined_pieces(batch)
    rows = []
    for origin, (row, start, end) in zip(batch["origins"], pieces, strict=True):
        weights = batch["weights"][row, start:end].tolist() if "weights" in batch else None
        ids, labels = batch["input_ids"][row, start:end].tolist(), batch["labels"][row, start:end].tolist()
        rows.append(PreviewRow(origin, reader.tokens(ids, labels, weights)))
    return rows


def shape_of_batch(batch: Mapping[str, Any]) -> BatchShape:
    """Rows, columns and padding of a collated batch."""
    rows, length = batch["input_ids"].shape
    padding = int((batch["attention_mask"] == 0).sum()) if "attention_mask" in batch else 0
    return BatchShape(rows, length, padding)


def _padded_pieces(batch: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    return [(row, 0, int(count)) for row, count in enumerate(batch["attention_mask"].sum(dim=1))]


def _joined_pieces(batch: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Examples laid end to end: positions start again at 0 with each."""
    starts = (batch["position_ids"][0] == 0).nonzero().squeeze(-1).tolist()
    ends = [*starts[1:], batch["position_ids"].shape[1]]
    return [(0, start, end) for start, end in zip(starts, ends, strict=True)]


class RowViewer:
    """Shows chosen rows: as they are trained, or whole with the reason why they are not.

    Args:
        builder: makes the run's examples.
        collator: the run's collator; one row goes through it at a time.
        reader: makes tokens readable.
    """

    def __init__(self, builder: ExampleBuilder, collator: Collator, reader: TokenReader) -> None:
        self.builder = builder
        self.collator = collator
        self.reader = reader
        self._whole = ExampleBuilder(builder.tokenizer, _without_limits(builder.data))

    def at_line(self, rows: Sequence[Row], line: int) -> Iterator[PreviewRow]:
        """The rows at a line (of every source that has it).

        Raises:
            DataError: no row of the run stands there.
        """
        chosen = [row for row in rows if row.line == line]
        if not chosen:
            near = min((row.line for row in rows), key=lambda other: abs(other - line), default=None)
            raise DataError(
                f"no row of this run stands at line {line}",
                remedy="limits and held-out shares leave rows out" + (f"; the nearest is {near}" if near else ""),
            )
        return (self.view(row) for row in chosen)

    def where(self, rows: Sequence[Row], which: Which, number: int) -> Iterator[PreviewRow]:
        """Up to ``number`` rows that are shortened, left out, or the longest."""
        if which == "longest":
            lengths = ((example.full_length, example.origin) for example in self._whole.examples(rows, Ledger()))
            wanted = [origin for _, origin in heapq.nlargest(number, lengths, key=lambda item: item[0])]
        else:
            account = self._account(rows)
            by_reason = account.cut if which == "cut" else account.dropped
            addresses = {where for reason in by_reason.values() for where in reason}
            wanted = [row.where for row in rows if row.where in addresses][:number]
        by_origin = {row.where: row for row in rows}
        return (self.view(by_origin[origin]) for origin in wanted)

    def view(self, row: Row) -> PreviewRow:
        """One row: its tokens as trained on, else as they would be without limits, none of them trained."""
        ledger = Ledger()
        try:
            example = self.builder.example(row, ledger)
        except DataError as problem:
            return self._untrained(row, f"refused: {problem.what}")
        if example is None:
            reasons = ", ".join(reason for account in ledger.sources.values() for reason in account.dropped)
            return self._untrained(row, f"dropped: {reasons}")
        (shown,) = rows_of_batch(self._batch(example), self.reader)
        if example.cut is None:
            return shown
        note = f"cut ({example.cut}): {len(example.input_ids)} of {example.full_length} tokens are left"
        return PreviewRow(shown.source, shown.tokens, note)

    def _account(self, rows: Sequence[Row]) -> SourceAccount:
        """What becomes of all rows; refused ones are left for whoever trains to report."""
        ledger = Ledger()
        with suppress(DataError):
            deque(self.builder.examples(rows, ledger), maxlen=0)
        return ledger.total()

    def _untrained(self, row: Row, note: str) -> PreviewRow:
        try:
            example = self._whole.example(row)
            ids = self.builder.prompt(row).input_ids if example is None else example.input_ids
        except DataError as problem:
            return PreviewRow(row.where, (), f"refused: {problem.what}")
        return PreviewRow(row.where, self.reader.tokens(ids, [IGNORE_INDEX] * len(ids)), note)

    def _batch(self, example: Example) -> dict[str, Any]:
        return self.collator(BatchRows([example], self.collator.batching, len(example.input_ids)))


def _without_limits(data: DataSection) -> DataSection:
    return data.model_copy(update={"max_length": NO_LIMIT, "empty_completion": "keep"})
