"""What a run will train on, row by row: its own first batches, or rows that somebody asks for.

The steps are those of ``setup.py`` up to the data, and the same functions order and collate as in training. No model is
loaded and no trainer is built.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from tunesmith.config.resolve import Resolved
from tunesmith.data.batching import Batching, BatchRows, joined
from tunesmith.data.collate import Collator, sharing
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.families import families
from tunesmith.data.preview import PreviewRow, RowViewer, TokenReader, Which, rows_of_batch, shape_of_batch
from tunesmith.data.row import Row
from tunesmith.data.selection import load_rows
from tunesmith.data.stream import ExampleStream
from tunesmith.train.order import batches, rows_layout
from tunesmith.train.prepare import data_section
from tunesmith.train.processes import running
from tunesmith.train.setup import Setup, set_up

_TREES = ("auto", "prefix_tree")
MOST_BY_DEFAULT = 8
"""Rows that are shown when nobody says how many."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows to show, what they are, and what is to be known about all of them."""

    title: str
    rows: list[PreviewRow]
    facts: list[str] = field(default_factory=list)


def first_batches(resolved: Resolved, number: int | None = None) -> Preview:
    """The first rows that the trainer draws, in its order and layout.

    Args:
        resolved: the run's configuration.
        number: examples to show; None shows the first batch, at most ``MOST_BY_DEFAULT``.

    Raises:
        TunesmithError: as training would before it loads the model.
    """
    setup = set_up(resolved, running(), only=["data"])
    data = setup.data
    if isinstance(data.train, ExampleStream):
        return _first_of_stream(setup, data.train, number or MOST_BY_DEFAULT)
    batch_rows = BatchRows(data.train, rows_layout(resolved), resolved.config.data.max_length)
    size = resolved.config.training.per_device_train_batch_size
    related = families(data.train, size) if resolved.config.training.group_by_prefix else None
    order = batches(resolved, batch_rows.lengths, related=related)
    collator, reader = _collator(setup), _reader(data.builder, data.first_row)
    shown: list[PreviewRow] = []
    facts: list[str] = []
    wanted = number or MOST_BY_DEFAULT
    for index, batch_indices in enumerate(order):
        if len(shown) >= wanted or (index > 0 and number is None):
            break
        batch = collator([batch_rows[at] for at in batch_indices])
        shape = shape_of_batch(batch)
        padding = f", {shape.padding / (shape.rows * shape.length):.1%} padding" if collator.pads else ""
        rows = rows_of_batch(batch, reader)[: wanted - len(shown)]
        shown += rows
        facts.append(
            f"batch {index + 1} ({resolved.config.training.batching}): {len(batch['origins'])} examples in "
            f"{shape.rows} x {shape.length} tokens{padding}{_shared(resolved, batch_rows, batch_indices)}"
        )
    account = data.train_ledger.total()
    facts.append(
        f"all rows: {account.kept:,} kept of {account.read:,}, {account.tokens:,} tokens, "
        f"{account.trained_tokens / account.tokens:.1%} of them trained"
    )
    return Preview("first rows in the trainer's order", shown, facts)


def _first_of_stream(setup: Setup, stream: ExampleStream, number: int) -> Preview:
    """The first rows of data that nobody has read to its end: training draws them in this order."""
    collator, reader = _collator(setup), _reader(setup.data.builder, setup.data.first_row)
    shown: list[PreviewRow] = []
    for example in stream.first(number):
        shown += rows_of_batch(collator([joined([example], weighted=True)]), reader)
    return Preview("first rows of the stream", shown, ["the data is streamed, so it is not known as a whole"])


def row_at(resolved: Resolved, line: int) -> Preview:
    """The training or evaluation rows at a line of their files.

    Raises:
        TunesmithError: as training would before it loads the model, or there is no such row.
    """
    viewer, train_rows, eval_rows = _viewer(resolved)
    rows = train_rows if any(row.line == line for row in train_rows) else [*train_rows, *eval_rows]
    return Preview(f"line {line}", list(viewer.at_line(rows, line)))


def rows_where(resolved: Resolved, which: Which, number: int | None = None) -> Preview:
    """Training rows that are shortened, left out, or the longest.

    Raises:
        TunesmithError: as training would before it loads the model.
    """
    viewer, rows, _ = _viewer(resolved)
    found: Iterable[PreviewRow] = viewer.where(rows, which, number or MOST_BY_DEFAULT)
    title = "the longest rows" if which == "longest" else f"rows that are {which}"
    shown = list(islice(found, number or MOST_BY_DEFAULT))
    return Preview(title, shown, [] if shown else [f"none of the {len(rows):,} training rows is {which}"])


def _viewer(resolved: Resolved) -> tuple[RowViewer, list[Row], list[Row]]:
    setup = set_up(resolved, running(), only=["tokenizer"])  # dropped rows are shown too, and prepared data has none
    data = data_section(resolved)
    train_rows, eval_rows = load_rows(data)
    builder = ExampleBuilder(setup.tokenizer, data)
    viewer = RowViewer(builder, _collator(setup), _reader(builder, train_rows[0]))
    return viewer, train_rows, eval_rows


def _shared(resolved: Resolved, rows: BatchRows, batch: list[int]) -> str:
    """What a tree saves of a batch, in words; the rows themselves are shown whole."""
    if resolved.config.training.batching not in _TREES:
        return ""
    tokens, computed = sharing([rows[at] for at in batch])
    return f", {computed} where shared beginnings are computed once" if computed < tokens else ""


def _collator(setup: Setup) -> Collator:
    """The collator of the run's layout. Rows of a tree are shown as they lie without it, each whole; so are those of
    ``auto``, for what it comes to is the model's to tell (``check`` asks its architecture), and no row depends on it.
    """
    batching = setup.resolved.config.training.batching
    shown: Batching = "unpadded" if batching == "auto" or batching == "prefix_tree" else batching
    return Collator(shown, setup.tokenizer.pad_token_id)


def _reader(builder: ExampleBuilder, row: Row) -> TokenReader:
    return TokenReader(builder.tokenizer, builder.stop_token_ids(row))
