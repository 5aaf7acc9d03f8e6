"""Which rows a run trains and evaluates on: reading, shuffling, limits, holding out, and the search for leaks.

It looks at prompts as text only; nothing here makes examples.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.formats import FORMATS, FormatOptions, detect, rename
from tunesmith.data.row import Row
from tunesmith.data.rows import read_rows
from tunesmith.data.tokenized import TOKENIZED, read_tokens
from tunesmith.errors import ConfigError, DataError, did_you_mean
from tunesmith.notices import notify

LEAKS_SHOWN = 5
MOST_PASSES = 100


def load_rows(data: DataSection) -> tuple[list[Row], list[Row]]:
    """Training rows and evaluation rows; the second list is empty when nothing is held out.

    Raises:
        DataError: rows cannot be read, or none is left.
    """
    if data.train_data is None:
        raise DataError("no training data", remedy="set train_data")
    sources = [data.train_data] if isinstance(data.train_data, str) or data.mix_weights is None else data.train_data
    read = [read_rows(source, subset=data.subset, split=data.train_split) for source in sources]
    if data.mix_weights is not None:
        return _mixed(data, read)
    (train,) = read
    if data.shuffle_seed is not None:
        train = shuffled(train, data.shuffle_seed)
    train = train[: data.limit]
    held: list[Row] = []
    if data.eval_data is not None or data.eval_split is not None:
        held = evaluation_rows(data)
    elif data.dev_split > 0:
        train, held = held_out(train, data)
    return train, held[: data.eval_limit]


def _mixed(data: DataSection, sources: list[list[Row]]) -> tuple[list[Row], list[Row]]:
    """``load_rows`` with weights: what is held out is taken away first, so that no row drawn again can be in it."""
    seed = data.shuffle_seed or 0
    held: list[Row] = []
    if data.eval_data is not None or data.eval_split is not None:
        held = evaluation_rows(data)
    elif data.dev_split > 0:
        _, held = held_out([row for rows in sources for row in rows], data)
        away = {id(row) for row in held}
        sources = [[row for row in rows if id(row) not in away] for rows in sources]
    train = mix(sources, data.mix_weights or [], seed, until_all=data.mix_stop == "all_exhausted")
    return train[: data.limit], held[: data.eval_limit]


def mix(sources: Sequence[Sequence[Row]], weights: Sequence[float], seed: int, *, until_all: bool) -> list[Row]:
    """Rows drawn at random from several sources, each source in a random order of its own.

    Args:
        sources: rows of each source.
        weights: how often a source is drawn from, relative to the others.
        seed: decides the draws; the same rows, weights and seed give the same result.
        until_all: False ends when a source has no row left, and no row occurs twice. True starts such a source again,
            in a new order, and ends when each has been used up once.

    Raises:
        ConfigError: there is not one weight for each source.
        DataError: a source is empty, or mixing would draw the rows more than ``MOST_PASSES`` times over.
    """
    if len(weights) != len(sources):
        raise ConfigError(
            f"mix_weights has {len(weights)} numbers for {len(sources)} entries of train_data",
            remedy="give one for each entry",
        )
    if not all(sources):
        raise DataError("one entry of train_data has no rows to mix", remedy="give more rows or hold out fewer")
    num_rows = sum(map(len, sources))
    draws = max(len(rows) * sum(weights) / weight for rows, weight in zip(sources, weights, strict=True))
    if until_all and draws > MOST_PASSES * num_rows:
        raise DataError(
            f"mix_weights {list(weights)} need about {draws:.0f} draws from {num_rows} rows until all are used up",
            remedy="give small entries smaller weights, or set mix_stop: first_exhausted",
        )
    generator = random.Random(seed)
    numbers = range(len(sources))
    waiting: list[list[Row]] = [[] for _ in sources]
    rounds = [0 for _ in sources]
    drawn: list[Row] = []
    while True:
        (number,) = generator.choices(numbers, weights)
        if not waiting[number]:
            if rounds[number] and not until_all:
                return drawn
            waiting[number] = generator.sample(sources[number], len(sources[number]))
            rounds[number] += 1
        drawn.append(waiting[number].pop())
        if until_all and all(done > bool(left) for done, left in zip(rounds, waiting, strict=True)):
            return drawn


def evaluation_rows(data: DataSection) -> list[Row]:
    """The rows of ``eval_data``, or of ``eval_split`` of the training data set.

    Raises:
        DataError: rows cannot be read.
    """
    source = data.eval_data if data.eval_data is not None else data.train_data
    if source is None:
        raise DataError("no evaluation data", remedy="set eval_data")
    rows = read_rows(source, subset=data.subset, split=data.eval_split or "validation")
    return rows[: data.eval_limit]


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in an order that depends on ``seed`` and their number only."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order]


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split off a random ``share`` of the rows, at least one; both parts keep the rows' order.

    Raises:
        DataError: one part would be empty.
    """
    number = max(1, round(len(rows) * share))
    if number >= len(rows):
        raise DataError(
            f"holding out {share} of {len(rows)} rows leaves none to train on",
            remedy="give more rows or set dev_split: 0",
        )
    chosen = set(random.Random(seed).sample(range(len(rows)), number))
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]


def held_out(rows: Sequence[Row], data: DataSection) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those that ``dev_split`` holds out, in the way that the settings ask for.

    Raises:
        DataError: one part would be empty, or a row has no such column.
    """
    share, seed = data.dev_split, data.shuffle_seed or 0
    if data.dev_group_by is not None:
        return hold_out_groups(rows, [_group_key(row, data) for row in rows], share, seed)
    if data.dev_stratify_by is not None:
        return hold_out_stratified(rows, [_cell(row, data.dev_stratify_by) for row in rows], share, seed)
    return hold_out(rows, share, seed)


def hold_out_groups(rows: Sequence[Row], keys: Sequence[str], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """``hold_out`` where rows with equal keys stay together; so close to ``share`` as whole groups can come from below.

    Raises:
        DataError: there is one group only, or the smallest one is all but the whole.
    """
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DataError(
            f"all {len(rows)} rows are of one group, so none can be held out",
            remedy="give more rows or set dev_split: 0",
        )
    wanted = max(1, round(len(rows) * share))
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    chosen: set[str] = set()
    number = 0
    for key in order:
        if number + sizes[key] <= wanted:
            chosen.add(key)
            number += sizes[key]
    if not chosen:
        chosen.add(min(order, key=sizes.__getitem__))
    if len(chosen) == len(order):
        chosen.discard(order[-1])
    held = [row for row, key in zip(rows, keys, strict=True) if key in chosen]
    notify(f"{len(held)} of {len(rows)} rows are held out: {len(chosen)} of {len(order)} groups")
    return [row for row, key in zip(rows, keys, strict=True) if key not in chosen], held


def hold_out_stratified(
    rows: Sequence[Row], labels: Sequence[str], share: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """``hold_out`` with each label's share of the rows held out as it is among all, to within one row.

    Raises:
        DataError: one part would be empty.
    """
    number = max(1, round(len(rows) * share))
    by_label: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    exact = {label: len(places) * number / len(rows) for label, places in by_label.items()}
    quota = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    spare = [label for label in by_remainder if quota[label] + 1 < len(by_label[label])]  # none loses its last row
    for label in spare[: number - sum(quota.values())]:
        quota[label] += 1
    if number >= len(rows) or not any(quota.values()):
        raise DataError(
            f"holding out {share} of {len(rows)} rows leaves a label without rows to train on",
            remedy="give more rows of each label or leave out dev_stratify_by",
        )
    generator = random.Random(seed)
    chosen = {index for label in sorted(by_label) for index in generator.sample(by_label[label], quota[label])}
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]


def _group_key(row: Row, data: DataSection) -> str:
    column = data.dev_group_by or ""
    if column != "prompt":
        return _cell(row, column)
    renamed = rename(row, data.columns)
    if data.format == TOKENIZED or (data.format == "auto" and detect(renamed) == TOKENIZED):
        return str(read_tokens(renamed).prompt)
    options = FormatOptions(need_answer=False, completion_start=data.completion_start, whole_text=data.loss_on == "all")
    chat = FORMATS[detect(renamed) if data.format == "auto" else data.format](renamed, options).without_answer()
    return _plain("\0".join(f"{turn.role} {turn.content}" for turn in chat.messages))


def _cell(row: Row, column: str) -> str:
    if column not in row.values:
        remedy = did_you_mean(column, list(row.values), f"it has {', '.join(row.values)}")
        raise DataError(f"the row has no column {column!r}, by which rows are held out", where=row.where, remedy=remedy)
    return json.dumps(row.values[column], sort_keys=True, default=str)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def leaks(train_rows: Iterable[Row], eval_rows: Iterable[Row], builder: ExampleBuilder) -> list[tuple[str, str]]:
    """Evaluation rows whose prompt also occurs in training: (address in evaluation, first address in training).

    Prompts are compared as rendered text after NFKC normalisation, with every run of white space as one space.
    Only those of the evaluation rows are remembered, so the training rows may be read from disk one by one.
    """
    held = [(row.where, _prompt_key(row, builder)) for row in eval_rows]
    wanted = {key for _, key in held}
    first: dict[str, str] = {}
    for row in train_rows if wanted else ():
        key = _prompt_key(row, builder)
        if key in wanted:
            first.setdefault(key, row.where)
    return [(where, first[key]) for where, key in held if key in first]


def without_leaks(
    train_rows: Iterable[Row], eval_rows: Iterable[Row], builder: ExampleBuilder, *, allow: bool
) -> Iterator[Row]:
    """The training rows one by one; the first whose prompt is also held out stops the run, or is said where allowed.

    Raises:
        DataError: there is a leak and nobody allowed it.
    """
    held = {_prompt_key(row, builder): row.where for row in eval_rows}
    for row in train_rows:
        where = held.get(_prompt_key(row, builder)) if held else None
        if where is not None:
            refuse_leaks([(where, row.where)], allow=allow)
        yield row


def refuse_leaks(found: Sequence[tuple[str, str]], *, allow: bool) -> None:
    """Stop because of leaks, or say that they were allowed.

    Raises:
        DataError: there are leaks and nobody allowed them.
    """
    if not found:
        return
    pairs = ", ".join(f"{evaluated} = {trained}" for evaluated, trained in found[:LEAKS_SHOWN])
    more = f" and {len(found) - LEAKS_SHOWN} more" if len(found) > LEAKS_SHOWN else ""
    what = f"{len(found)} evaluation prompts occur among the training rows: {pairs}{more}"
    if not allow:
        raise DataError(what, remedy="remove them, hold out with dev_group_by: prompt, or set allow_leak: true")
    notify(f"{what}; allow_leak is set, so evaluation results are too good")


def _prompt_key(row: Row, builder: ExampleBuilder) -> str:
    return _plain(builder.prompt_text(row))
