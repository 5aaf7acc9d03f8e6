"""The prompts of a run's own rows as token ids, for whoever asks a model and does not score it (the merge's proof)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from tunesmith.config.resolve import NO_PERMISSIONS, Resolved
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.data.rows import iter_rows
from tunesmith.errors import DataError
from tunesmith.evaluate.rows import held_out_rows
from tunesmith.export.proof import Questions
from tunesmith.model import source
from tunesmith.model.load import model_spec
from tunesmith.model.tokenizer import load_tokenizer

NUM_PROMPTS = 16
LONGEST = 1024
"""Tokens of a prompt that are used, from its end."""


def questions_for(
    run: str | Path,
    *,
    data: str | None = None,
    base_model: str | None = None,
    permissions: Mapping[str, Any] = NO_PERMISSIONS,
) -> Questions:
    """What a run's adapter and its merged model are both asked: evaluation rows, training rows where there are none.

    Args:
        run: run or adapter folder.
        data: other rows.
        base_model: another place of the adapter's base.
        permissions: what today's command line permits, by path.

    Raises:
        DataError: there are no rows, or one has no prompt.
    """
    how = model_spec(run, base=base_model, device_map="cpu", permissions=permissions)
    section = how.resolved.config.model.model_copy(update={"tokenizer_name_or_path": how.tokenizer_folder})
    tokenizer = load_tokenizer(section)
    rows, kind = rows_to_ask(how.resolved, data)
    return as_questions(how.resolved, tokenizer, ExampleBuilder(tokenizer, how.resolved.config.data), rows, kind)


def rows_to_ask(resolved: Resolved, instead: str | None = None) -> tuple[list[Row], str]:
    """The first rows that were held out, or those of ``instead``, or else of the training data; and what they are.

    Raises:
        DataError: there are none.
    """
    data = resolved.config.data
    if instead is not None:
        return held_out_rows(data, instead, NUM_PROMPTS), "rows given for the proof"
    if data.eval_data is not None or data.eval_split is not None or data.dev_split:
        return held_out_rows(data, limit=NUM_PROMPTS), "held-out rows of the run"
    if data.train_data is None:
        raise DataError("there are no rows for the proof", remedy="name some (--data FILE), or --no_proof")
    first = data.train_data if isinstance(data.train_data, str) else data.train_data[0]
    rows = list(islice(iter_rows(first, subset=data.subset, split=data.train_split), NUM_PROMPTS))
    return rows, "training rows, because the run held none out"


def as_questions(
    resolved: Resolved, tokenizer: PreTrainedTokenizerBase, builder: ExampleBuilder, rows: Sequence[Row], kind: str
) -> Questions:
    """Rows as prompts that leave room for an answer, a long one by its end.

    Raises:
        DataError: a row cannot be used.
    """
    positions = _positions(resolved)
    longest_answer = min(Questions.max_new_tokens, positions // 2)
    room = min(LONGEST, positions - longest_answer)
    return Questions(
        prompts=[_prompt(builder, row)[-room:] for row in rows],
        sources=[row.where.replace("\\", "/").rpartition("/")[2] for row in rows],  # a proof travels; folders stay here
        kind=kind,
        stop_token_ids=builder.stop_token_ids(rows[0]),
        max_new_tokens=longest_answer,
    )


def _prompt(builder: ExampleBuilder, row: Row) -> list[int]:
    """A row's prompt; of a text without one, its first half."""
    try:
        return builder.prompt(row).input_ids
    except DataError:
        example = builder.example(row)
        if example is None:
            raise
        return list(example.input_ids[: max(1, len(example.input_ids) // 2)])


def _positions(resolved: Resolved) -> int:
    section = resolved.config.model
    located = source.locate(section.model_name_or_path, section.revision)
    config = AutoConfig.from_pretrained(located, **source.loading_keywords(section, located)).get_text_config()
    return getattr(config, "max_position_embeddings", None) or LONGEST
