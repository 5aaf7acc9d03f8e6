"""The rows of a run, read, split, checked and encoded, before anything heavy is loaded.

Preview and check call it as training does; no trainer, model or data set library is imported. Examples lie in a file,
so that memory does not grow with their number.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith import notices
from tunesmith.config.evaluation import evaluates
from tunesmith.config.resolve import Resolved
from tunesmith.config.schema import DataSection
from tunesmith.data import cache
from tunesmith.data.examples import ExampleBuilder, check_kept
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Example
from tunesmith.data.row import Row
from tunesmith.data.rows import iter_rows
from tunesmith.data.selection import evaluation_rows, leaks, load_rows, refuse_leaks, without_leaks
from tunesmith.data.store import ExampleStore, ExampleWriter
from tunesmith.data.stream import ExampleStream
from tunesmith.data.streamed import Unchanged, streamed_rows
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.train.garbage import nothing_old_collected
from tunesmith.train.once import once_per_machine
from tunesmith.train.plan import make_plan
from tunesmith.train.start import recorded_date

TRAIN, EVALUATION = "train.arrow", "evaluation.arrow"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Examples of a run, ready for batches, and what the evaluation by generation needs.

    The fingerprints are sha256 over the tokens and labels of the examples in order: equal data, template and tokenizer
    give equal ones.
    """

    train: Sequence[Example] | ExampleStream
    evaluation: Sequence[Example]
    eval_rows: list[Row]
    builder: ExampleBuilder
    first_row: Row
    train_ledger: Ledger
    eval_ledger: Ledger
    train_fingerprint: str | None
    eval_fingerprint: str | None


def prepare(resolved: Resolved, tokenizer: PreTrainedTokenizerBase, num_processes: int = 1) -> PreparedData:
    """The data of a run of so many processes: all of it made beforehand, or training rows as they are reached."""
    if not resolved.config.data.streaming:
        return prepare_data(resolved, tokenizer)
    # with as many rows as the steps take, every step has its full batches and one epoch is the whole run
    rows_per_step = make_plan(resolved, 1, num_processes).global_batch_size
    return prepare_stream(resolved, tokenizer, resolved.config.training.max_steps * rows_per_step)


def prepare_data(resolved: Resolved, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Read, split, check and encode the rows of a run, or take them from where an earlier run kept them.

    Of several processes, one does that on each machine; the others wait for it and open what it has made.

    Raises:
        DataError: a row is wrong, nothing is left to train on, or evaluation rows occur among the training rows.
        StorageError: examples cannot be written.
    """
    data = data_section(resolved)
    builder = ExampleBuilder(tokenizer, data)
    ours: list[PreparedData] = []

    def find_or_make() -> dict[str, Any]:
        before = notices.collected()
        prepared, place = _find_or_make(resolved, data, builder)
        ours.append(prepared)
        said, told = notices.collected(), notices.collected(details=False)
        return {"folder": str(place), "notices": [(text, text not in told) for text in said if text not in before]}

    run = Path(resolved.config.training.output_dir)
    shared = once_per_machine(run, "data", find_or_make, holds=lambda value: Path(value["folder"]).is_dir())
    if ours:
        return ours[0]
    for text, detail in shared["notices"]:
        notices.notify(text, detail=detail)
    return _kept(cache.read(Path(shared["folder"])), builder)


def _find_or_make(resolved: Resolved, data: DataSection, builder: ExampleBuilder) -> tuple[PreparedData, Path]:
    """The prepared data and the folder where it lies, for as long as this process lives at least."""
    tokenizer, folder = builder.tokenizer, _cache_folder(data)
    keyed = data.model_copy(update={"template_date": builder.template_date})  # the day counts where it is written
    key = cache.key_of(keyed, tokenizer) if data.cache and folder is not None else None
    entry = cache.find(folder, key) if folder is not None and key is not None else None
    if entry is not None:
        notices.notify(f"tokenised data is taken from {entry.folder}", detail=True)
        return _kept(entry, builder), entry.folder
    stage, temporary = _stage(data, folder if key is not None else None)
    try:
        before = notices.collected()
        with tokenizing_threads(data.num_proc), nothing_old_collected():
            made = _make(data, builder, stage, evaluates(resolved))
        rows = cache.rows_to_json([made.first_row, *made.eval_rows])
        about = _about(data, made, rows, builder, [text for text in notices.collected() if text not in before])
        # the data must still be what the key says: a file that changed while it was read belongs to no key
        if folder is None or key is None or temporary or rows is None or cache.key_of(keyed, tokenizer) != key:
            (stage / cache.ABOUT).write_text(json.dumps(about), encoding="utf-8")
            prepared = _opened(made, builder, stage)
            weakref.finalize(prepared.train, shutil.rmtree, stage, ignore_errors=True)
            return prepared, stage
        place = cache.keep(folder, key, stage, about)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    notices.notify(f"tokenised data is kept in {place}", detail=True)
    return _opened(made, builder, place), place


@dataclass(frozen=True, slots=True)
class _Made:
    """All of a preparation but the examples, which lie in files."""

    first_row: Row
    eval_rows: list[Row]
    train_ledger: Ledger
    eval_ledger: Ledger
    train_fingerprint: str
    eval_fingerprint: str | None


def _make(data: DataSection, builder: ExampleBuilder, stage: Path, evaluating: bool) -> _Made:
    """Write the examples into ``stage``."""
    train_rows, eval_rows = select_rows(data)
    if evaluating and not eval_rows:
        raise DataError("no evaluation rows", remedy="give eval_data with rows, or --eval_strategy no")
    train_ledger, eval_ledger = Ledger(), Ledger()
    first_row = next(iter(train_rows()), None)
    if first_row is None:
        raise DataError("no training rows", remedy="the data holds no rows")
    train_fingerprint = _write(train_rows(), builder, train_ledger, stage / TRAIN)
    eval_fingerprint = _write(eval_rows, builder, eval_ledger, stage / EVALUATION) if eval_rows else None
    if eval_rows:
        eval_ledger.leaks = leaks(train_rows(), eval_rows, builder)
        refuse_leaks(eval_ledger.leaks, allow=data.allow_leak)
    return _Made(first_row, eval_rows, train_ledger, eval_ledger, train_fingerprint, eval_fingerprint)


def _opened(made: _Made, builder: ExampleBuilder, place: Path) -> PreparedData:
    return PreparedData(
        ExampleStore(place / TRAIN),
        ExampleStore(place / EVALUATION) if made.eval_rows else [],
        made.eval_rows,
        builder,
        made.first_row,
        made.train_ledger,
        made.eval_ledger,
        made.train_fingerprint,
        made.eval_fingerprint,
    )


def _about(
    data: DataSection, made: _Made, rows: list[list[Any]] | None, builder: ExampleBuilder, said: list[str]
) -> dict[str, Any]:
    """What is kept beside the examples, so that nothing has to be read or said anew; ``rows`` that JSON cannot hold
    are read anew."""
    return {
        "source": data.train_data,
        "examples": [ledger.total().kept + ledger.total().pieces for ledger in (made.train_ledger, made.eval_ledger)],
        "fingerprints": [made.train_fingerprint, made.eval_fingerprint],
        "ledgers": [made.train_ledger.to_dict(), made.eval_ledger.to_dict()],
        "rows": rows,
        "formats": builder.formats,
        "notices": said,
    }


def _kept(entry: cache.Entry, builder: ExampleBuilder) -> PreparedData:
    """What an earlier run or another process prepared, its ledgers and notices included."""
    about = entry.about
    for text in about["notices"]:
        notices.notify(text)
    builder.formats.update(about["formats"])
    if about["rows"] is None:
        train_rows, eval_rows = select_rows(builder.data)
        first_row = next(iter(train_rows()))
    else:
        first_row, *eval_rows = cache.rows_from_json(about["rows"])
    ledgers = [Ledger.from_dict(values) for values in about["ledgers"]]
    return _opened(_Made(first_row, eval_rows, *ledgers, *about["fingerprints"]), builder, entry.folder)


def prepare_stream(resolved: Resolved, tokenizer: PreTrainedTokenizerBase, number: int) -> PreparedData:
    """The same without waiting: evaluation rows are encoded, training rows once training asks for them.

    Args:
        resolved: the run's configuration.
        tokenizer: the model's tokenizer.
        number: training examples that the run will ask for.

    Raises:
        DataError: an evaluation row is wrong, or there is no training row. What is wrong with later rows is found when
            they are reached.
    """
    data = data_section(resolved)
    builder = ExampleBuilder(tokenizer, data)
    eval_rows = [] if data.eval_data is None and data.eval_split is None else evaluation_rows(data)
    first_row = next(streamed_rows(data, 0), None)
    if first_row is None:
        raise DataError("no training rows", remedy="the data holds no rows")

    files = Unchanged(data)

    def rows(number: int) -> Iterator[Row]:
        files.check()
        yield from without_leaks(streamed_rows(data, number), eval_rows, builder, allow=data.allow_leak)
        files.check()

    packs = resolved.config.training.batching == "packed"
    stream = ExampleStream(rows, builder, number, data.max_length if packs else None)
    stage = Path(tempfile.mkdtemp(prefix="tunesmith-"))
    weakref.finalize(stream, shutil.rmtree, stage, ignore_errors=True)
    eval_ledger = Ledger()
    eval_fingerprint = _write(eval_rows, builder, eval_ledger, stage / EVALUATION) if eval_rows else None
    evaluation: Sequence[Example] = ExampleStore(stage / EVALUATION) if eval_rows else []
    return PreparedData(
        stream, evaluation, eval_rows, builder, first_row, stream.ledger, eval_ledger, None, eval_fingerprint
    )


def select_rows(data: DataSection) -> tuple[Callable[[], Iterable[Row]], list[Row]]:
    """The training rows, read afresh from their files at each call where the settings allow it, and those held out.

    Shuffling, mixing and holding out choose among all rows; their text, not their tokens, then stays in memory.
    """
    if data.shuffle_seed is not None or data.mix_weights is not None or _holds_out(data):
        train, held = load_rows(data)
        return lambda: train, held

    def rows() -> Iterator[Row]:
        return islice(iter_rows(data.train_data or [], subset=data.subset, split=data.train_split), data.limit)

    return rows, [] if data.eval_data is None and data.eval_split is None else evaluation_rows(data)


def _holds_out(data: DataSection) -> bool:
    return data.dev_split > 0 and data.eval_data is None and data.eval_split is None


def _write(rows: Iterable[Row], builder: ExampleBuilder, ledger: Ledger, path: Path) -> str:
    with ExampleWriter(path) as writer:
        for example in builder.examples(rows, ledger):
            writer.write(example)
    check_kept(writer.number, ledger, builder)
    return writer.fingerprint


def _cache_folder(data: DataSection) -> Path | None:
    """Where prepared data is kept; None, which is said, for a user without a home."""
    try:
        return cache.cache_folder(data)
    except StorageError as error:
        if data.cache_dir is not None:
            raise
        notices.notify(f"tokenised data is not kept: {error.line()}")
        return None


def _stage(data: DataSection, folder: Path | None) -> tuple[Path, bool]:
    """A folder for the examples, and whether it is a passing one: kept data needs a place that can be written."""
    if folder is not None:
        try:
            return cache.new_stage(folder), False
        except StorageError as error:
            if data.cache_dir is not None:
                raise
            notices.notify(f"tokenised data is not kept: {error.line()}")
    return Path(tempfile.mkdtemp(prefix="tunesmith-")), True


@contextmanager
def tokenizing_threads(number: int) -> Iterator[None]:
    """Let the tokenizers library use ``number`` threads; the ids and their order do not depend on it."""
    names = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {"TOKENIZERS_PARALLELISM": "true" if number > 1 else "false", "RAYON_NUM_THREADS": str(number)}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def data_section(resolved: Resolved) -> DataSection:
    """The data settings in force: without evaluation, nothing is held out or read for it.

    Raises:
        ConfigError: there is no training data.
    """
    data = resolved.config.data
    if not data.train_data:
        raise ConfigError("train_data is not set", remedy="name the training rows, for example --train_data rows.jsonl")
    if not evaluates(resolved):
        data = data.model_copy(update={"eval_data": None, "eval_split": None, "dev_split": 0.0})
    if data.template_date is None:
        data = data.model_copy(update={"template_date": recorded_date(resolved)})
    return data
