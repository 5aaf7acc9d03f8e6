"""Rows that are tokens already: ids, and which of them carry loss, with TRL's names of columns.

What they say is checked and not changed; ``masking.py`` makes labels of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.config.schema import DataSection
from tunesmith.data.encoding import Encoder
from tunesmith.data.masking import IGNORE_INDEX, Example, example_of_ids
from tunesmith.data.row import Row, value_of
from tunesmith.data.strict_json import json_type
from tunesmith.data.turns import from_json_text
from tunesmith.errors import ConfigError, DataError
from tunesmith.notices import notify

TOKENIZED = "tokenized"
IDS, LABELS, ATTENTION, POSITIONS, PACKED = "input_ids", "labels", "attention_mask", "position_ids", "seq_lengths"
MASKS = ("completion_mask", "assistant_masks")
COLUMNS = frozenset({IDS, LABELS, ATTENTION, POSITIONS, PACKED, *MASKS})
NEED_TEXT = ("template", "instruction", "completion_start")
"""Settings that only texts obey."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of a row without its padding, and for each whether it carries loss; None where the row does not say."""

    input_ids: list[int]
    trained: list[bool] | None

    @property
    def prompt(self) -> list[int]:
        """What stands before the last answer, or everything where there is none or nothing before it."""
        if self.trained is None or True not in self.trained:
            return self.input_ids
        start = len(self.trained) - 1 - self.trained[::-1].index(True)
        while start > 0 and self.trained[start - 1]:
            start -= 1
        return self.input_ids[: start or None]


class TokenRows:
    """Examples and prompts of such rows under one set of settings.

    Args:
        encoder: of the tokenizer that made the ids.
        data: the run's data section.

    Raises:
        ConfigError: a setting decides about text.
    """

    def __init__(self, encoder: Encoder, data: DataSection) -> None:
        check_settings(data)
        self._encoder = encoder
        self._loss_on = data.loss_on
        self._vocabulary = len(encoder.tokenizer)

    def example(self, row: Row, weight: float = 1.0) -> Example:
        """The example of a row.

        Raises:
            DataError: it cannot be used.
        """
        tokens = read_tokens(row, self._vocabulary)
        if self._encoder.begin(None) and tokens.input_ids[0] != self._encoder.bos_token_id:
            notify(f"{row.source}: rows of {IDS} without the begin token that texts get are trained without it")
        return example_of_ids(tokens.input_ids, tokens.trained, self._encoder, row.where, self._loss_on, weight)

    def prompt(self, row: Row) -> list[int]:
        """The ids that inference feeds for a row.

        Raises:
            DataError: it cannot be read.
        """
        return read_tokens(row, self._vocabulary).prompt

    def has_nothing_to_learn(self, row: Row) -> bool:
        """Whether the row leaves all of its tokens out."""
        trained = read_tokens(row, self._vocabulary).trained
        return trained is not None and True not in trained[1:]

    def ends(self, example: Example) -> bool:
        """Whether the last token with loss is one at which generation can stop."""
        return self._encoder.is_control(self._last(example))

    def check_end(self, example: Example) -> None:
        """Stop where the end of an answer cannot be kept when the rest of it is cut.

        Raises:
            DataError: the last token is none that carries loss and ends generation.
        """
        if example.labels[-1] == IGNORE_INDEX or not self.ends(example):
            raise DataError(
                "the row does not end with an end token that carries loss, so a cut answer would have no end",
                where=example.origin,
                remedy="set too_long to drop or truncate_prompt, or give shorter rows",
            )

    def stop_token_ids(self, row: Row) -> list[int]:
        """The token that ends the row's answer, where it is a control token, and the end token."""
        tokens, end = read_tokens(row, self._vocabulary), self._encoder.eos_token_id
        trained = [number for number, told in zip(tokens.input_ids, tokens.trained or [], strict=False) if told]
        return [trained[-1], end] if trained and self._encoder.is_control(trained[-1]) and trained[-1] != end else [end]

    @staticmethod
    def _last(example: Example) -> int:
        return next(label for label in reversed(example.labels) if label != IGNORE_INDEX)


def check_settings(data: DataSection) -> None:
    """Refuse settings that decide about text, of which such rows have none.

    Raises:
        ConfigError: names one of them.
    """
    chosen = next((name for name in NEED_TEXT if getattr(data, name) is not None), None)
    if chosen is None and not data.train_thoughts:
        chosen = "train_thoughts"
    if chosen is None and data.loss_on == "last_assistant":
        chosen = "loss_on"
    if chosen is not None:
        raise ConfigError(
            f"{chosen} decides about text, and rows of {IDS} are tokens already",
            where=f"data.{chosen} = {getattr(data, chosen)}",
            remedy=f"leave it unset and say in {LABELS} or {MASKS[0]} which tokens carry loss, or give rows of text",
        )


def read_tokens(row: Row, vocabulary: int | None = None) -> Tokens:
    """The tokens of a row.

    Args:
        row: the row; a column may hold JSON of a list, as tables do.
        vocabulary: number of ids that the tokenizer knows; None checks nothing.

    Raises:
        DataError: ids that are none, lists of other lengths, labels that are other ids, or masks that contradict.
    """
    ids = _integers(row, IDS)
    if not ids:
        raise DataError(f'"{IDS}" is an empty list', where=row.where, remedy="give tokens or remove the row")
    if vocabulary is not None and not (min(ids) >= 0 and max(ids) < vocabulary):
        wrong = next(index for index, number in enumerate(ids) if not 0 <= number < vocabulary)
        raise DataError(
            f"{IDS}[{wrong}] is {ids[wrong]}, and the tokenizer knows ids from 0 to {vocabulary - 1}",
            where=row.where,
            remedy="use the tokenizer that made the ids",
        )
    start, end = _inside(row, ids)
    _refuse_packed(row, ids, start, end)
    trained = _trained(row, ids)
    if trained is not None and any(trained[:start] + trained[end:]):
        raise DataError(f"a token that {ATTENTION} leaves out carries loss", where=row.where)
    return Tokens(ids[start:end], None if trained is None else trained[start:end])


def _integers(row: Row, key: str, length: int | None = None) -> list[int]:
    values: Any = from_json_text(row, value_of(row, key), key)
    if not isinstance(values, list):
        raise DataError(f'"{key}" must be a list of integers, this is {json_type(values)}', where=row.where)
    kinds = set(map(type, values))
    if not kinds <= {int, bool} or (bool in kinds and key == IDS):
        allowed = (int,) if key == IDS else (int, bool)
        wrong = next(index for index, value in enumerate(values) if type(value) not in allowed)
        raise DataError(f"{key}[{wrong}] must be an integer, this is {json_type(values[wrong])}", where=row.where)
    if length is not None and len(values) != length:
        raise DataError(
            f"{key} has {len(values)} entries and {IDS} has {length}",
            where=row.where,
            remedy="each token has one entry",
        )
    return values


def _mask(row: Row, key: str, length: int) -> list[bool]:
    values = _integers(row, key, length)
    wrong = next((value for value in values if value not in (0, 1)), None)
    if wrong is not None:
        raise DataError(f"{key} holds {wrong}, and a mask holds 0 and 1", where=row.where)
    return list(map(bool, values))


def _inside(row: Row, ids: list[int]) -> tuple[int, int]:
    """From where to where the row holds tokens and not padding."""
    if row.values.get(ATTENTION) is None:
        return 0, len(ids)
    mask = _mask(row, ATTENTION, len(ids))
    if not any(mask):
        raise DataError(f"{ATTENTION} leaves no token", where=row.where, remedy="remove the row")
    start, end = mask.index(True), len(mask) - mask[::-1].index(True)
    if not all(mask[start:end]):
        raise DataError(
            f"{ATTENTION} hides tokens between others",
            where=row.where,
            remedy="only padding at the beginning or the end can be left out",
        )
    return start, end


def _refuse_packed(row: Row, ids: list[int], start: int, end: int) -> None:
    """Stop at a row that holds several examples: they would see one another."""
    lengths = _integers(row, PACKED) if row.values.get(PACKED) is not None else [len(ids)]
    positions = _integers(row, POSITIONS, len(ids)) if row.values.get(POSITIONS) is not None else None
    own = positions is None or positions[start:end] == list(range(end - start))
    if len(lengths) != 1 or not own:
        raise DataError(
            f"{PACKED if own else POSITIONS} says that several examples share the row",
            where=row.where,
            remedy="give each example a row of its own; batching: packed joins them and keeps them apart",
        )


def _trained(row: Row, ids: list[int]) -> list[bool] | None:
    """Which tokens carry loss by all that the row says of it: as in TRL, those that no column leaves out."""
    said = [_mask(row, name, len(ids)) for name in MASKS if row.values.get(name) is not None]
    if row.values.get(LABELS) is not None:
        labels = _integers(row, LABELS, len(ids))
        for index, (label, number) in enumerate(zip(labels, ids, strict=True)):
            if label not in (IGNORE_INDEX, number):
                shifted = labels[:-1] == ids[1:] or labels[1:] == ids[:-1]
                remedy = (
                    "labels are not shifted: the model does that" if shifted else "it is -100 where there is no loss"
                )
                raise DataError(f"{LABELS}[{index}] is {label}, and the token is {number}", where=row.where,
                                remedy=remedy)  # fmt: skip
        said.append([label != IGNORE_INDEX for label in labels])
    return [all(told) for told in zip(*said, strict=True)] if said else None
