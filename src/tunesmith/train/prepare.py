"""The rows of a run, read, split, checked and encoded, before anything heavy is loaded.

Preview and check call it as training does; no trainer, model or data set library is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunesmith.config.resolve import Resolved
from tunesmith.config.rules import evaluates
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder, build_examples
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Example
from tunesmith.data.rows import Row
from tunesmith.data.selection import leaks, load_rows, refuse_leaks
from tunesmith.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Examples of a run, ready for batches, and what the evaluation by generation needs."""

    train: list[Example]
    evaluation: list[Example]
    eval_rows: list[Row]
    builder: ExampleBuilder
    first_row: Row
    train_ledger: Ledger
    eval_ledger: Ledger


def prepare_data(resolved: Resolved, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Read, split, check and encode the rows of a run.

    Raises:
        DataError: a row is wrong, nothing is left to train on, or evaluation rows occur among the training rows.
    """
    data = data_section(resolved)
    train_rows, eval_rows = load_rows(data)
    if evaluates(resolved) and not eval_rows:
        raise DataError("no evaluation rows", remedy="give eval_data with rows, or --eval_strategy no")
    builder = ExampleBuilder(tokenizer, data)
    train_ledger, eval_ledger = Ledger(), Ledger()
    train_examples = build_examples(train_rows, builder, train_ledger)
    eval_examples = build_examples(eval_rows, builder, eval_ledger) if eval_rows else []
    if eval_rows:
        refuse_leaks(leaks(train_rows, eval_rows, builder), allow=data.allow_leak)
    return PreparedData(train_examples, eval_examples, eval_rows, builder, train_rows[0], train_ledger, eval_ledger)


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
    return data
