"""Premise, hypothesis, reasoning and label over the embedded world, balanced so that neither sentence gives the label.

It writes no instruction template and no files: rows are plain dictionaries, made from the squares of
``nli_squares.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.errors import DataError
from tunesmith.synthetic import vocabulary as v
from tunesmith.synthetic.nli_squares import PHENOMENA, Pair, Square, thought

Row = dict[str, Any]


def _squares(rng: random.Random, held_out: bool) -> Iterator[tuple[str, Square]]:
    """Squares without end, the phenomena in turn, all on the wanted side of the held-out line."""
    while True:
        for phenomenon, makers in PHENOMENA.items():
            for maker in makers:
                # One square in a dozen or so is held out; a few hundred draws always find one.
                while True:
                    square = maker(rng)
                    hits = [bool(v.held_out_pairs((pair.premise, pair.hypothesis))) for pair in square]
                    if all(hits) if held_out else not any(hits):
                        break
                yield phenomenon, square


_SQUARES_PER_LOOK = 400
_FEWEST_NEW_READINGS = 100


def _pairs(num: int, rng: random.Random, held_out: bool) -> list[tuple[str, Pair]]:
    """``num`` different pairs, shuffled.

    Raises:
        DataError: hardly any square brings a new pair any more, so the world is used up.
    """
    found: dict[tuple[str, str], tuple[str, Pair]] = {}
    known = 0
    for drawn, (phenomenon, square) in enumerate(_squares(rng, held_out)):
        # Entailment and the rest in turn, so that a square cut short by ``num`` costs the balance one row at most.
        for pair in (square[0], square[1], square[3], square[2]):
            if len(found) < num:
                found.setdefault((pair.premise, pair.hypothesis), (phenomenon, pair))
        if len(found) >= num:
            break
        if drawn % _SQUARES_PER_LOOK == _SQUARES_PER_LOOK - 1:
            if len(found) - known < _FEWEST_NEW_READINGS:
                raise DataError(
                    f"the embedded world has only about {len(found)} of the {num} examples asked for",
                    where="data make nli",
                    remedy="ask for fewer",
                )
            known = len(found)
    pairs = list(found.values())
    rng.shuffle(pairs)
    return pairs


def _both_sides(num_train: int, num_heldout: int, seed: int) -> tuple[list[tuple[str, Pair]], list[tuple[str, Pair]]]:
    """Readings for training and held-out pairs; each side depends on the seed only, not on the other's size."""
    return (
        _pairs(num_train, random.Random(f"nli train {seed}"), held_out=False),
        _pairs(num_heldout, random.Random(f"nli heldout {seed}"), held_out=True),
    )


def make_nli(num_train: int, num_heldout: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows for training and held-out rows, which use combinations of words that no training row has.

    Returns:
        Two lists of rows with the keys id, premise, hypothesis, thought_process, predicted_label (1 entailment,
        0 neutral or contradiction), phenomenon and relation. The thought and the label are right in every row.

    Raises:
        DataError: more different rows were asked for than there are.
    """
    sides = _both_sides(num_train, num_heldout, seed)
    train, heldout = (
        [
            {
                "id": f"nli-{side}-{index}",
                "premise": pair.premise,
                "hypothesis": pair.hypothesis,
                "thought_process": thought(pair.restated, pair.compared, pair.label),
                "predicted_label": pair.label,
                "phenomenon": phenomenon,
                "relation": pair.relation,
            }
            for index, (phenomenon, pair) in enumerate(pairs)
        ]
        for side, pairs in zip(("train", "heldout"), sides, strict=True)
    )
    return train, heldout


def make_nli_thoughts(num: int, wrong_share: float = 0.3, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Thought rows, a share of them wrong, and a reflection row for each wrong one.

    Args:
        num: how many thought rows; the same premises and hypotheses as ``make_nli(num, ..., seed)`` has for training.
        wrong_share: the part, from 0 to 1, whose second step slips and whose label is therefore wrong.
        seed: as for ``make_nli``.

    Returns:
        Thought rows (id, premise, hypothesis, thought_process, predicted_label, true_label, correct) and reflection
        rows (id, premise, hypothesis, predicted_label, true_label, thought_process, error_analysis,
        improved_thought_process).
    """
    pairs, _ = _both_sides(num, 0, seed)
    rng = random.Random(f"nli slips {seed}")
    slipped = set(rng.sample(range(num), round(num * wrong_share)))
    thoughts: list[Row] = []
    reflections: list[Row] = []
    for index, (_, pair) in enumerate(pairs):
        wrong = index in slipped
        compared, predicted = (pair.slip, 1 - pair.label) if wrong else (pair.compared, pair.label)
        row: Row = {
            "id": f"nli-train-{index}",
            "premise": pair.premise,
            "hypothesis": pair.hypothesis,
            "thought_process": thought(pair.restated, compared, predicted),
            "predicted_label": predicted,
            "true_label": pair.label,
        }
        thoughts.append({**row, "correct": not wrong})
        if wrong:
            reflections.append(
                {
                    **row,
                    "error_analysis": f'step 2 is wrong: it says "{pair.slip}" and should say "{pair.compared}".',
                    "improved_thought_process": thought(pair.restated, pair.compared, pair.label),
                }
            )
    return thoughts, reflections


def source_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows as a plain NLI table has them: premise, hypothesis and label (1 entailment, 0 otherwise)."""
    return [
        {"premise": row["premise"], "hypothesis": row["hypothesis"], "label": row["predicted_label"]} for row in rows
    ]
