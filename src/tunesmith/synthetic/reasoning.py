"""Small word problems over the embedded world, with the steps and the number that ends the answer.

It writes no prompt template and no files: rows are plain dictionaries.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.errors import DataError
from tunesmith.synthetic import vocabulary as v

Row = dict[str, object]

OPERANDS_HELD_OUT_ONE_IN = 5
MAX_RESULT = 30


@dataclass(frozen=True)
class Problem:
    """A word problem: its text, its solution in steps, the number asked for and the numbers given."""

    prompt: str
    steps: tuple[str, ...]
    answer: int
    operands: tuple[int, ...]


def operands_held_out(kind: str, operands: tuple[int, ...]) -> bool:
    """Whether these numbers, in this order and kind of problem, are kept out of all training rows."""
    key = f"{kind}:{','.join(map(str, operands))}"
    return zlib.crc32(key.encode()) % OPERANDS_HELD_OUT_ONE_IN == 0


def _gain(rng: random.Random, name: str, other: str, amount: str) -> str:
    return rng.choice((f"{name} finds {amount}.", f"{name} buys {amount}.", f"{other} gives {name} {amount}."))


def _loss(rng: random.Random, name: str, other: str, amount: str) -> str:
    return rng.choice((f"{name} loses {amount}.", f"{name} sells {amount}.", f"{name} gives {other} {amount}."))


def change(rng: random.Random) -> Problem:
    """Somebody has things, and gets or loses some, once or twice."""
    name, other = rng.sample(v.NAMES, 2)
    noun = rng.choice(v.COUNTABLE)
    have = rng.randint(2, 12)
    operands, sentences, steps = [have], [f"{name} has {v.counted(have, noun)}."], []
    for _ in range(rng.choice((1, 2, 2))):
        amount = rng.randint(1, 9)
        if amount < have and rng.random() < 0.5:
            sentences.append(_loss(rng, name, other, v.counted(amount, noun)))
            steps.append(f"{have} - {amount} = {have - amount}.")
            have, operand = have - amount, -amount
        else:
            sentences.append(_gain(rng, name, other, v.counted(amount, noun)))
            steps.append(f"{have} + {amount} = {have + amount}.")
            have, operand = have + amount, amount
        operands.append(operand)
    question = f"How many {v.plural(noun)} does {name} have now?"
    return Problem(f"{' '.join(sentences)} {question}", tuple(steps), have, tuple(operands))


def together(rng: random.Random) -> Problem:
    """Two or three people put their things together."""
    names = rng.sample(v.NAMES, rng.choice((2, 3)))
    noun = rng.choice(v.COUNTABLE)
    counts = [rng.randint(2, 9) for _ in names]
    sentences = [f"{name} has {v.counted(count, noun)}." for name, count in zip(names, counts, strict=True)]
    total, steps = counts[0], []
    for count in counts[1:]:
        steps.append(f"{total} + {count} = {total + count}.")
        total += count
    question = f"How many {v.plural(noun)} do they have together?"
    return Problem(f"{' '.join(sentences)} {question}", tuple(steps), total, tuple(counts))


def difference(rng: random.Random) -> Problem:
    """How many more one person has than another."""
    name, other = rng.sample(v.NAMES, 2)
    noun = rng.choice(v.COUNTABLE)
    many, few = sorted(rng.sample(range(2, 16), 2), reverse=True)
    owners = [f"{name} has {v.counted(many, noun)}.", f"{other} has {v.counted(few, noun)}."]
    rng.shuffle(owners)
    question = f"How many more {v.plural(noun)} does {name} have than {other}?"
    return Problem(f"{' '.join(owners)} {question}", (f"{many} - {few} = {many - few}.",), many - few, (many, few))


PROBLEMS: dict[str, Callable[[random.Random], Problem]] = {
    "change": change,
    "together": together,
    "difference": difference,
}
"""Kind of problem -> its maker."""

_MAX_DRAWS_PER_ROW = 20_000


def _rows(num: int, seed: int, side: str) -> list[Row]:
    rng = random.Random(f"reasoning {side} {seed}")
    held_out = side == "heldout"
    rows: dict[str, Row] = {}
    for _ in range(num * _MAX_DRAWS_PER_ROW):
        if len(rows) == num:
            break
        kind = list(PROBLEMS)[len(rows) % len(PROBLEMS)]
        problem = PROBLEMS[kind](rng)
        hits = (operands_held_out(kind, problem.operands), bool(v.held_out_pairs([problem.prompt])))
        if problem.answer > MAX_RESULT or problem.prompt in rows or not (all(hits) if held_out else not any(hits)):
            continue
        rows[problem.prompt] = {
            "id": f"reasoning-{side}-{len(rows)}",
            "prompt": problem.prompt,
            "response": f"{' '.join(problem.steps)} #### {problem.answer}",
            "kind": kind,
            "operands": list(problem.operands),
        }
    if len(rows) < num:
        raise DataError(
            f"the embedded world has only {len(rows)} of the {num} {side} problems asked for",
            where="data make reasoning",
            remedy="ask for fewer",
        )
    made = list(rows.values())
    rng.shuffle(made)
    return made


def make_reasoning(num_train: int, num_heldout: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Training rows, and held-out rows with numbers and combinations of words that no training row has.

    Returns:
        Two lists of rows with the keys id, prompt, response (steps, then ``#### number``), kind and operands.

    Raises:
        DataError: more different rows were asked for than there are.
    """
    return _rows(num_train, seed, "train"), _rows(num_heldout, seed, "heldout")
