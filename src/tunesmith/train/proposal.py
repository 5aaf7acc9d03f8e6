"""A first configuration for rows of a known shape: every setting with a word why. Nothing is written here.

The rules are rules of thumb, by the number of rows, their lengths in tokens and the model's size; what they are worth
for the embedded model is measured in ``tests/recipes/test_first_run.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.config.resolve import from_values
from tunesmith.config.schema import DataSection, ModelSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.guess import Shape, label_values
from tunesmith.data.ledger import Ledger
from tunesmith.data.row import Row
from tunesmith.data.tokenized import TOKENIZED
from tunesmith.errors import DataError
from tunesmith.evaluate.tasks.classification import label_set
from tunesmith.model.memory.shapes import bare_skeleton
from tunesmith.model.parameters import trainable_parameters

SMALL = 50_000_000
"""Parameters up to which a processor trains a model in minutes, and rates are those of small models."""
BILLION = 1_000_000_000
UNLIMITED = 10**9
STEP_TOKENS = 32
"""Lengths are rounded up to a multiple of this."""
LONGEST = 2048
"""Tokens beyond which rows are the exception, and not what memory is made for."""
SMALL_LORA = {"r": 32, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.0}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.05}
"""Adapters of small and of all other models, in the words of ``lora_config``."""
SMALL_STEPS, SMALL_EPOCHS, SMALL_RATE = 120, 30, 2e-3
"""What five learnable tasks of 40 to 60 rows need with the embedded model: with the highest number of passes."""
STEPS, EPOCHS, RATE, LARGE_RATE = 60, 10, 2e-4, 1e-4
"""The same for larger models, the last one from 3 billion parameters on."""
FEWEST_TO_HOLD_OUT = 10
MANY_TWICE = 0.4
"""Share of rows that repeat another from which each is trained once; training refuses half of the rows it is given."""
MOST_HELD_OUT = 500


@dataclass(frozen=True, slots=True)
class Item:
    """A setting of the sectioned YAML: where it stands, its value, and why it has it."""

    section: str
    name: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows in tokens, and how they had to be read.

    Attributes:
        lengths: tokens of each example.
        answers: tokens with loss of each.
        turn_order: ``data.turn_order`` under which all chats can be read.
        repeated: whether two rows ask the same.
        twice: rows that are equal to an earlier one.
    """

    lengths: list[int]
    answers: list[int]
    turn_order: str
    repeated: bool
    twice: int = 0


def facts_of(section: ModelSection) -> tuple[int, int | None]:
    """A model's number of parameters and its longest input in tokens (None: not known), from its configuration alone.

    Raises:
        ModelError: there is none, or no model can be built from it.
    """
    model = bare_skeleton(from_values({"model.model_name_or_path": section.model_name_or_path}))
    positions = getattr(model.config, "max_position_embeddings", None)
    return trainable_parameters(model)[1], positions if isinstance(positions, int) else None


def data_settings(shape: Shape) -> dict[str, Any]:
    """What a shape says to the section ``data``, as far as it is not said anyway."""
    written: dict[str, Any] = {"format": shape.format}
    for name in ("columns", "roles", "completion_start"):
        if getattr(shape, name):
            written[name] = getattr(shape, name)
    if shape.loss_on != "completion":
        written["loss_on"] = shape.loss_on
    return written


def measure(rows: Sequence[Row], shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Measured:
    """Make examples of all rows; chats in an unusual order are joined where that makes all of them readable.

    Raises:
        DataError: rows cannot be read; up to 20 are listed.
        ModelError: the tokenizer has no end token.
    """
    try:
        return _measure(rows, shape, tokenizer, "error")
    except DataError as problem:
        if shape.format not in ("messages", "sharegpt"):
            raise
        try:
            return _measure(rows, shape, tokenizer, "merge")
        except DataError:
            raise problem from None


def _measure(rows: Sequence[Row], shape: Shape, tokenizer: PreTrainedTokenizerBase, turn_order: str) -> Measured:
    changes = data_settings(shape) | {
        "turn_order": turn_order, "max_length": UNLIMITED, "empty_completion": "drop", "max_dropped": 1.0,
    }  # fmt: skip
    builder = ExampleBuilder(tokenizer, DataSection.model_validate(changes))
    ledger = Ledger()
    found = list(builder.examples(rows, ledger))
    if not found:
        raise DataError("every row has an empty answer", where=rows[0].source, remedy="name another --answer COLUMN")
    asked: set[str] = set()
    if shape.format != TOKENIZED and shape.loss_on != "all":
        asked = {" ".join(builder.prompt_text(row).split()) for row in rows}
    lengths = [len(example.input_ids) for example in found]
    answers = [example.num_trained_tokens for example in found]
    twice = len(ledger.total().duplicates)
    return Measured(lengths, answers, turn_order, bool(asked) and len(asked) < len(rows), twice)


def propose(
    rows: Sequence[Row], shape: Shape, measured: Measured, *, data: str, model: str, size: int, positions: int | None
) -> list[Item]:
    """The settings of a first run, in the order in which a file has them.

    Args:
        rows: all rows.
        shape: how they are read.
        measured: the same in tokens.
        data: ``train_data``, as it is named from where the file will lie.
        model: ``model_name_or_path``.
        size: its number of parameters.
        positions: its longest input in tokens; None: not known.
    """
    length, too_long = _length(measured.lengths, positions)
    labels = label_set(label_values(rows, shape.answer) or ()) if shape.answer else []
    items = [
        Item("model", "path", model, f"{size:,} parameters"),
        Item("model", "max_seq_length", length, too_long),
        *_adapter(size),
        Item("dataset", "name", data, f"{len(rows):,} rows; {shape.why}"),
        *(Item("dataset", name, value, "") for name, value in data_settings(shape).items()),
        *_reading(measured, length, len(rows) - len(measured.lengths)),
        *(once := _once(measured, len(rows))),
    ]
    number = len(rows) - (measured.twice if once else 0)
    held = held_out_rows(number)
    if held:
        items += _holding_out(number, shape, measured, labels, held)
    items += _training(number - held, size, held=bool(held))
    return [*items, *_judging(shape, labels, measured)] if held else items


def _length(lengths: Sequence[int], positions: int | None) -> tuple[int, str]:
    longest, most = max(lengths), min(positions or LONGEST, LONGEST)
    needed = max(64, math.ceil(longest / STEP_TOKENS) * STEP_TOKENS)
    if longest <= most:
        return min(needed, most), f"tokens; the longest of your rows has {longest}"
    over = sum(length > most for length in lengths)
    return most, f"tokens; {over:,} of {len(lengths):,} rows are longer (up to {longest:,})"


def _reading(measured: Measured, length: int, empty: int) -> list[Item]:
    """How rows that are not as usual are read."""
    items = []
    if empty > 0:
        items.append(Item("dataset", "empty_completion", "drop", f"{empty:,} rows have nothing to learn"))
    over = sum(found > length for found in measured.lengths)
    if over:
        share = over / len(measured.lengths)
        how, why = ("drop", "few are too long") if share <= 0.1 else ("truncate_prompt", "too many to do without")
        items.append(Item("dataset", "too_long", how, f"{why}; ledger.json counts them"))
    if measured.turn_order != "error":
        items.append(
            Item("dataset", "turn_order", measured.turn_order, "some chats have two turns of one role in a row")
        )
    return items


def _once(measured: Measured, num_rows: int) -> list[Item]:
    """Settings that train each row once, where so many are repeated that training would refuse them."""
    if measured.twice <= MANY_TWICE * num_rows:
        return []
    most = min(10, math.ceil(measured.twice / num_rows * 10) + 1) / 10
    return [
        Item("dataset", "duplicates", "drop", f"{measured.twice:,} of your {num_rows:,} rows repeat an earlier one"),
        Item("dataset", "max_duplicates", most, "share of such rows up to which nobody is asked"),
        Item("dataset", "max_dropped", most, "they count as dropped"),
    ]


def held_out_rows(num_rows: int) -> int:
    """Rows that a first run keeps for judging it; 0 where there are too few."""
    if num_rows < FEWEST_TO_HOLD_OUT:
        return 0
    return min(MOST_HELD_OUT, max(2, round(num_rows * (0.2 if num_rows <= 1000 else 0.1))))


def _holding_out(number: int, shape: Shape, measured: Measured, labels: Sequence[str], held: int) -> list[Item]:
    share = math.ceil(held / number * 10_000) / 10_000
    items = [Item("dataset", "dev_split", share, f"share of the rows that is kept for judging: {held:,}")]
    if measured.repeated:
        items.append(Item("dataset", "dev_group_by", "prompt", "some questions occur twice; they stay on one side"))
    elif labels:
        items.append(Item("dataset", "dev_stratify_by", shape.answer, "each label in its proportion"))
    return items


def _adapter(size: int) -> list[Item]:
    if size <= SMALL:
        return [
            Item("model", "use_lora", True, "train an adapter, and keep the model as it is; `merge` puts it in"),
            Item("model", "lora_config", SMALL_LORA, "a small model needs a large adapter"),
        ]
    items = [
        Item("model", "use_lora", True, "train an adapter: a fraction of the memory of all weights"),
        Item("model", "lora_config", LORA, ""),
    ]
    if size >= 6 * BILLION:
        items.append(Item("model", "load_in_4bit", True, "QLoRA: the frozen weights take a quarter of the memory"))
    return items


def _training(num_rows: int, size: int, *, held: bool) -> list[Item]:
    small = size <= SMALL
    batch = 8 if num_rows < 2000 else 16
    per_epoch = max(1, math.ceil(num_rows / batch))
    wanted, most = (SMALL_STEPS, SMALL_EPOCHS) if small else (STEPS, EPOCHS)
    least = 3 if num_rows < 20_000 else 1
    epochs = min(max(least, math.ceil(wanted / per_epoch)), most)
    steps = epochs * per_epoch
    rate = SMALL_RATE if small else RATE if size < 3 * BILLION else LARGE_RATE
    accumulate = 1 if size < BILLION else 4
    every = max(1, steps // 5)
    items = [
        Item("training", "output_dir", "run", "the run folder"),
        Item("training", "epochs", epochs, f"passes over the rows: about {steps:,} steps"),
        Item("training", "per_device_train_batch_size", batch // accumulate, "rows of one pass"),
        *([Item("training", "gradient_accumulation_steps", accumulate, "passes of one step")] * (accumulate > 1)),
        Item("training", "learning_rate", rate, "for an adapter; lower it if the loss jumps"),
        Item("training", "lr_scheduler_type", "cosine", ""),
        Item("training", "warmup_ratio", 0.1, ""),
        *([Item("training", "gradient_checkpointing", True, "less memory, a third slower")] * (size >= BILLION)),
        Item("training", "logging_steps", max(1, steps // 20), "steps"),
        *([Item("training", "eval_steps", every, "steps between looks at the held-out rows")] * held),
        Item("training", "save_steps", every, "steps between checkpoints, from which a stopped run goes on"),
        Item("training", "save_total_limit", 1, "checkpoints kept"),
        Item("training", "save_merged_model", False, "`tunesmith merge` does it, with a proof"),
    ]
    return items


def _judging(shape: Shape, labels: Sequence[str], measured: Measured) -> list[Item]:
    longest = max(measured.answers)
    room = math.ceil(longest * 1.25 / 8) * 8 + 8
    items = [Item("evaluation", "max_new_tokens", room, f"the longest answer has {longest} tokens")]
    if shape.loss_on == "all":
        return []
    if labels:
        items = [
            Item("evaluation", "task", "classification", "the answers are labels"),
            Item("evaluation", "labels", list(labels), ""),
            *items,
        ]
    return items
