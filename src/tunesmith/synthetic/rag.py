"""Questions over short documents of the embedded world: one document holds the answer, the others distract.

It writes no prompt and no files, and chooses no order of passages: rows are plain dictionaries.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tunesmith.errors import DataError
from tunesmith.synthetic import vocabulary as v

Row = dict[str, object]


@dataclass(frozen=True)
class Fact:
    """One sentence about a person, the question it answers, and the answer as it stands in the sentence."""

    topic: str
    text: str
    question: str
    answer: str


def facts_about(name: str, rng: random.Random) -> list[Fact]:
    """One fact of every topic about a person."""
    number, things = rng.randint(2, 12), v.plural(rng.choice(v.COUNTABLE))
    job, town, animal, fruit = rng.choice(v.JOBS), rng.choice(v.TOWNS), rng.choice(v.ANIMALS), rng.choice(v.FRUITS)
    colour, thing, place = rng.choice(v.COLOURS), rng.choice(v.INSTRUMENTS + v.VEHICLES), rng.choice(v.PLACES)
    return [
        Fact("town", f"{name} lives in {town}.", f"Where does {name} live?", town),
        Fact("job", f"{name} is {v.article(job)}.", f"What is the job of {name}?", job),
        Fact("animal", f"{name} keeps {v.article(animal)}.", f"Which animal does {name} keep?", animal),
        Fact("fruit", f"{name} likes {v.plural(fruit)}.", f"What does {name} like?", v.plural(fruit)),
        Fact("count", f"{name} has {number} {things}.", f"How many {things} does {name} have?", str(number)),
        Fact("colour", f"{name} owns {v.article(colour)} {thing}.", f"What colour is the {thing} of {name}?", colour),
        Fact("place", f"{name} waits in the {place}.", f"Where does {name} wait?", f"the {place}"),
    ]  # fmt: skip


TOPICS = tuple(fact.topic for fact in facts_about("Anna", random.Random(0)))


def _row(rng: random.Random, topic: str) -> tuple[Row, Fact]:
    """A question about one of several people; every distractor answers the same question about somebody else."""
    names = rng.sample(v.NAMES, rng.randint(3, 5))
    passages, asked = [], []
    for name in names:
        facts = facts_about(name, rng)
        fact = next(fact for fact in facts if fact.topic == topic)
        others = rng.sample([other for other in facts if other.topic != topic], rng.randint(1, 2))
        told = [fact, *others]
        rng.shuffle(told)
        asked.append(fact)
        passages.append(" ".join(fact.text for fact in told))
    row: Row = {
        "query": asked[0].question,
        "answers": [asked[0].answer],
        "answer-short": [[asked[0].answer]],
        "positive_passages": [passages[0]],
        "negative_passages": passages[1:],
        "topic": topic,
    }
    return row, asked[0]


_MAX_DRAWS_PER_ROW = 5_000


def _rows(num: int, seed: int, side: str) -> list[Row]:
    rng = random.Random(f"rag {side} {seed}")
    held_out = side == "heldout"
    rows: dict[tuple[str, str], Row] = {}
    topics = [topic for topic in TOPICS if not held_out or topic in HELD_OUT_TOPICS]
    for _ in range(num * _MAX_DRAWS_PER_ROW):
        if len(rows) == num:
            break
        row, fact = _row(rng, topics[len(rows) % len(topics)])
        if bool(v.held_out_pairs([fact.text])) == held_out:
            rows.setdefault((fact.text, str(row["negative_passages"])), row)
    if len(rows) < num:
        raise DataError(
            f"the embedded world has only {len(rows)} of the {num} {side} questions asked for",
            where="data make rag",
            remedy="ask for fewer",
        )
    made = list(rows.values())
    rng.shuffle(made)
    return [{"id": f"rag-{side}-{index}", **row} for index, row in enumerate(made)]


HELD_OUT_TOPICS = ("town", "job", "animal", "fruit", "count", "colour")
"""Topics whose facts pair a name with a content word; a place is no content word, so it is asked in training only."""


def make_rag(num_train: int, num_heldout: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Training rows, and held-out rows about facts (somebody with a town, an animal ...) that no training row asks.

    Returns:
        Two lists of rows with the keys id, query, answers, answer-short, positive_passages (one passage, which holds
        the answer as it is written), negative_passages (two to four, each about somebody else) and topic.

    Raises:
        DataError: more different rows were asked for than there are.
    """
    return _rows(num_train, seed, "train"), _rows(num_heldout, seed, "heldout")
