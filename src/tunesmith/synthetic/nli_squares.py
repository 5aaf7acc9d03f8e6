"""Squares of premises and hypotheses: four pairs in which neither sentence alone says anything about the label.

A square has two premises and two hypotheses; each premise entails exactly one of the hypotheses and each hypothesis is
entailed by exactly one of the premises, so half of the four examples are entailments. Rows are ``nli.py``'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.synthetic import vocabulary as v

ENTAILMENT, NEUTRAL, CONTRADICTION = "entailment", "neutral", "contradiction"


@dataclass(frozen=True)
class Pair:
    """One premise with one hypothesis: what they say, what follows, and a slip that a careless reader makes."""

    premise: str
    hypothesis: str
    restated: str
    """Step 1: the premise in the simplest words."""
    compared: str
    """Step 2: what decides the case."""
    slip: str
    """A wrong step 2, which leads to the opposite label."""
    relation: str

    @property
    def label(self) -> int:
        """1 for entailment, 0 for neutral and for contradiction."""
        return int(self.relation == ENTAILMENT)


Square = tuple[Pair, Pair, Pair, Pair]


def thought(restated: str, compared: str, label: int) -> str:
    """The chain of thought in three steps."""
    conclusion = "so it follows" if label else "so it does not follow"
    return f"step 1: {restated}. step 2: {compared}. step 3: {conclusion}."


def _square(
    premises: tuple[str, str],
    hypotheses: tuple[str, str],
    restated: tuple[str, str],
    same: tuple[str, str],
    other: tuple[str, str],
    relation: str,
) -> Square:
    """The four pairs of a square.

    Args:
        premises, hypotheses: hypothesis i follows from premise i and from no other.
        restated: step 1 for each premise.
        same: step 2 for each hypothesis when the premise supports it; it is the slip when the premise does not.
        other: step 2 for each hypothesis when the premise does not support it; it is the slip when it does.
        relation: what the two crossed pairs are, neutral or contradiction.
    """

    def pair(premise: int, hypothesis: int) -> Pair:
        follows = premise == hypothesis
        return Pair(
            premise=v.sentence(premises[premise]),
            hypothesis=v.sentence(hypotheses[hypothesis]),
            restated=restated[premise],
            compared=same[hypothesis] if follows else other[hypothesis],
            slip=other[hypothesis] if follows else same[hypothesis],
            relation=ENTAILMENT if follows else relation,
        )

    return pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)


def _setting(rng: random.Random) -> str:
    """Sometimes a place, for premises only: detail that no hypothesis asks for."""
    return f" in the {rng.choice(v.PLACES)}" if rng.random() < 0.25 else ""


def _described(rng: random.Random, noun: str) -> str:
    """Sometimes a colour before the noun, for premises only."""
    return f"{rng.choice(v.COLOURS)} {noun}" if rng.random() < 0.25 else noun


def _is_a(noun: str, kind: str) -> str:
    """Step 2 when a noun belongs to the class in question."""
    return f"asked: {v.article(kind)}. {v.article(noun)} is {v.article(kind)}"


def _is_not_a(noun: str, kind: str) -> str:
    """Step 2 when it does not."""
    return f"asked: {v.article(kind)}. {v.article(noun)} is not {v.article(kind)}"


def hypernym_agent(rng: random.Random) -> Square:
    """Example: "The dog holds the ball" says that an animal holds the ball, not that a person does."""
    animal, person = rng.choice(v.ANIMALS), rng.choice(v.PEOPLE)
    verb, thing, setting = rng.choice(v.HANDLING_VERBS).third, rng.choice(v.THINGS), _setting(rng)
    nouns, kinds = (animal, person), ("animal", "person")
    return _square(
        premises=(
            f"the {_described(rng, animal)} {verb} the {thing}{setting}",
            f"the {_described(rng, person)} {verb} the {thing}{setting}",
        ),
        hypotheses=(f"an animal {verb} the {thing}", f"a person {verb} the {thing}"),
        restated=(f"the {animal} {verb} the {thing}", f"the {person} {verb} the {thing}"),
        same=(_is_a(nouns[0], kinds[0]), _is_a(nouns[1], kinds[1])),
        other=(_is_not_a(nouns[1], kinds[0]), _is_not_a(nouns[0], kinds[1])),
        relation=NEUTRAL,
    )


def hypernym_object(rng: random.Random) -> Square:
    """Example: "The girl takes the plum" says that she takes a fruit, not that she takes a tool."""
    kinds = rng.sample(v.THING_KINDS, 2)
    nouns = [rng.choice(v.KINDS[kind]) for kind in kinds]
    agent, verb, setting = rng.choice(v.PEOPLE + v.ANIMALS), rng.choice(v.HANDLING_VERBS).third, _setting(rng)
    return _square(
        premises=(
            f"the {agent} {verb} the {_described(rng, nouns[0])}{setting}",
            f"the {agent} {verb} the {_described(rng, nouns[1])}{setting}",
        ),
        hypotheses=(f"the {agent} {verb} {v.article(kinds[0])}", f"the {agent} {verb} {v.article(kinds[1])}"),
        restated=(f"the {agent} {verb} the {nouns[0]}", f"the {agent} {verb} the {nouns[1]}"),
        same=(_is_a(nouns[0], kinds[0]), _is_a(nouns[1], kinds[1])),
        other=(_is_not_a(nouns[1], kinds[0]), _is_not_a(nouns[0], kinds[1])),
        relation=NEUTRAL,
    )


def hypernym_downward(rng: random.Random) -> Square:
    """A class does not say which member: "a fruit" is silent about the apple, "an animal" about the dog."""
    agent_kind = rng.choice(("animal", "person"))
    agent, thing = rng.choice(v.KINDS[agent_kind]), rng.choice(v.THINGS)
    thing_kind, verb, setting = v.kind_of(thing), rng.choice(v.HANDLING_VERBS).third, _setting(rng)
    return _square(
        premises=(
            f"the {agent} {verb} {v.article(thing_kind)}{setting}",
            f"{v.article(agent_kind)} {verb} the {thing}{setting}",
        ),
        hypotheses=(f"the {agent} {verb} something", f"something {verb} the {thing}"),
        restated=(f"the {agent} {verb} {v.article(thing_kind)}", f"{v.article(agent_kind)} {verb} the {thing}"),
        same=(f"{v.article(thing_kind)} is something", f"{v.article(agent_kind)} is something"),
        other=(f"{v.article(agent_kind)} may not be the {agent}", f"{v.article(thing_kind)} may not be the {thing}"),
        relation=NEUTRAL,
    )


def negation_opposite(rng: random.Random) -> Square:
    """Example: "The box is open" says that the box is not closed."""
    first, second, nouns = rng.choice(v.OPPOSITES)
    if rng.random() < 0.5:
        first, second = second, first
    noun, setting = rng.choice(nouns), _setting(rng)
    subject = f"the {_described(rng, noun)}{setting}"
    return _square(
        premises=(f"{subject} is {first}", f"{subject} is {second}"),
        hypotheses=(f"the {noun} is not {second}", f"the {noun} is not {first}"),
        restated=(f"the {noun} is {first}", f"the {noun} is {second}"),
        same=(f"asked: not {second}. {first} means not {second}", f"asked: not {first}. {second} means not {first}"),
        other=(f"asked: not {second}. {second} denies it", f"asked: not {first}. {first} denies it"),
        relation=CONTRADICTION,
    )


def negation_truth(rng: random.Random) -> Square:
    """Example: "The dog does not see the man" against "it is true that ..." and "it is not true that ..."."""
    agent, other = rng.sample(v.ANIMALS + v.PEOPLE, 2)
    verb, setting = rng.choice(v.MEETING_VERBS), _setting(rng)
    positive, negative = f"the {agent} {verb.third} the {other}", f"the {agent} does not {verb.base} the {other}"
    return _square(
        premises=(positive + setting, negative + setting),
        hypotheses=(f"it is true that {positive}", f"it is not true that {positive}"),
        restated=(positive, negative),
        same=("both say yes", "both say no"),
        other=("the premise says no, the hypothesis yes", "the premise says yes, the hypothesis no"),
        relation=CONTRADICTION,
    )


def negation_none(rng: random.Random) -> Square:
    """Example: "No animal sleeps" speaks of the dog, not of the man."""
    animal, person = rng.choice(v.ANIMALS), rng.choice(v.PEOPLE)
    verb, setting, nouns, kinds = rng.choice(v.RESTING_VERBS), _setting(rng), (animal, person), ("animal", "person")
    return _square(
        premises=(f"no animal {verb.third}{setting}", f"no person {verb.third}{setting}"),
        hypotheses=(f"the {animal} does not {verb.base}", f"the {person} does not {verb.base}"),
        restated=(f"no animal {verb.third}", f"no person {verb.third}"),
        same=(_is_a(nouns[0], kinds[0]), _is_a(nouns[1], kinds[1])),
        other=(_is_not_a(nouns[0], kinds[1]), _is_not_a(nouns[1], kinds[0])),
        relation=NEUTRAL,
    )


def quantifier_all_none(rng: random.Random) -> Square:
    """Example: "All dogs sleep" and "no dogs sleep", asked of one dog."""
    noun, verb, setting = rng.choice(v.ANIMALS + v.PEOPLE), rng.choice(v.RESTING_VERBS), _setting(rng)
    colour = rng.choice(v.COLOURS)
    return _square(
        premises=(f"all {v.plural(noun)} {verb.base}{setting}", f"no {v.plural(noun)} {verb.base}{setting}"),
        hypotheses=(f"the {colour} {noun} {verb.third}", f"the {colour} {noun} does not {verb.base}"),
        restated=(f"all {v.plural(noun)} {verb.base}", f"no {v.plural(noun)} {verb.base}"),
        same=("both say yes", "both say no"),
        other=("the premise says no, the hypothesis yes", "the premise says yes, the hypothesis no"),
        relation=CONTRADICTION,
    )


def quantifier_every_some(rng: random.Random) -> Square:
    """Example: "Every dog sleeps" against "only some dogs sleep"."""
    noun, verb, setting = rng.choice(v.ANIMALS + v.PEOPLE), rng.choice(v.RESTING_VERBS), _setting(rng)
    return _square(
        premises=(f"every {noun} {verb.third}{setting}", f"only some {v.plural(noun)} {verb.base}{setting}"),
        hypotheses=(f"all {v.plural(noun)} {verb.base}", f"not all {v.plural(noun)} {verb.base}"),
        restated=(f"every {noun} {verb.third}", f"only some {v.plural(noun)} {verb.base}"),
        same=("every means all", "only some means not all"),
        other=("only some does not mean all", "every means all, not some"),
        relation=CONTRADICTION,
    )


def quantifier_member(rng: random.Random) -> Square:
    """Example: "Every animal sleeps" speaks of the dog, not of the man."""
    animal, person, setting = rng.choice(v.ANIMALS), rng.choice(v.PEOPLE), _setting(rng)
    verb, nouns, kinds = rng.choice(v.RESTING_VERBS), (animal, person), ("animal", "person")
    return _square(
        premises=(f"every animal {verb.third}{setting}", f"every person {verb.third}{setting}"),
        hypotheses=(f"the {animal} {verb.third}", f"the {person} {verb.third}"),
        restated=(f"every animal {verb.third}", f"every person {verb.third}"),
        same=(_is_a(nouns[0], kinds[0]), _is_a(nouns[1], kinds[1])),
        other=(_is_not_a(nouns[0], kinds[1]), _is_not_a(nouns[1], kinds[0])),
        relation=NEUTRAL,
    )


def number_bound(rng: random.Random) -> Square:
    """Example: "Three dogs run" against "more than four dogs run" and "fewer than four dogs run"."""
    noun, verb, setting = rng.choice(v.ANIMALS + v.PEOPLE), rng.choice(v.RESTING_VERBS), _setting(rng)
    bound = rng.randint(3, 9)
    many, few, limit = (v.NUMBER_WORDS[n] for n in (rng.randint(bound + 1, 12), rng.randint(2, bound - 1), bound))
    nouns = v.plural(noun)
    return _square(
        premises=(f"{many} {nouns} {verb.base}{setting}", f"{few} {nouns} {verb.base}{setting}"),
        hypotheses=(f"more than {limit} {nouns} {verb.base}", f"fewer than {limit} {nouns} {verb.base}"),
        restated=(f"{many} {nouns} {verb.base}", f"{few} {nouns} {verb.base}"),
        same=(
            f"asked: more than {limit}. {many} is more than {limit}",
            f"asked: fewer than {limit}. {few} is fewer than {limit}",
        ),
        other=(
            f"asked: more than {limit}. {few} is not more than {limit}",
            f"asked: fewer than {limit}. {many} is not fewer than {limit}",
        ),
        relation=CONTRADICTION,
    )


def number_sum(rng: random.Random) -> Square:
    """Example: "Two dogs and three cats" are five animals."""
    kind = rng.choice(("animal", "person"))
    first, second = rng.sample(v.KINDS[kind], 2)
    verb, setting = rng.choice(v.RESTING_VERBS).base, _setting(rng)
    shared = rng.randint(2, 5)
    one, two = rng.sample(range(2, 8), 2)
    words = v.NUMBER_WORDS
    totals = (words[one + shared], words[two + shared])
    kinds = v.plural(kind)
    return _square(
        premises=tuple(  # type: ignore[arg-type]
            f"{words[n]} {v.plural(first)} and {words[shared]} {v.plural(second)} {verb}{setting}" for n in (one, two)
        ),
        hypotheses=tuple(f"{total} {kinds} {verb}" for total in totals),  # type: ignore[arg-type]
        restated=tuple(f"{words[n]} and {words[shared]} make {words[n + shared]}" for n in (one, two)),  # type: ignore[arg-type]
        same=(f"asked: {totals[0]}. {totals[0]} is {totals[0]}", f"asked: {totals[1]}. {totals[1]} is {totals[1]}"),
        other=(
            f"asked: {totals[0]}. {totals[1]} is not {totals[0]}",
            f"asked: {totals[1]}. {totals[0]} is not {totals[1]}",
        ),
        relation=CONTRADICTION,
    )


def _roles(statement: str, doer: str, other: str) -> str:
    """Step 1 where it matters who is who: the statement, and of each of the two whether it is the one that does it."""
    return f"{statement}: the {doer} yes, the {other} no"


def _same_one(noun: str) -> str:
    """Step 2 when the hypothesis says it of the one that the premise says it of; the tag of step 1 is looked up."""
    return f"asked: the {noun} yes"


def _other_one(asked: str) -> str:
    """Step 2 when the hypothesis says it of the other one."""
    return f"asked: the {asked} no"


def _meeting(rng: random.Random) -> tuple[str, str, v.Verb, str]:
    """Two different living beings, what happens between them, and sometimes where."""
    first, second = rng.sample(v.ANIMALS + v.PEOPLE, 2)
    return first, second, rng.choice(v.MEETING_VERBS), _setting(rng)


def passive_hypothesis(rng: random.Random) -> Square:
    """Example: "The dog chases the man" says that the man is chased by the dog."""
    first, second, verb, setting = _meeting(rng)
    active = (f"the {first} {verb.third} the {second}", f"the {second} {verb.third} the {first}")
    return _square(
        premises=(active[0] + setting, active[1] + setting),
        hypotheses=(
            f"the {second} is {verb.participle} by the {first}",
            f"the {first} is {verb.participle} by the {second}",
        ),
        restated=(_roles(active[0], first, second), _roles(active[1], second, first)),
        same=(_same_one(first), _same_one(second)),
        other=(_other_one(first), _other_one(second)),
        relation=NEUTRAL,
    )


def passive_premise(rng: random.Random) -> Square:
    """Example: "The man is chased by the dog" says that the dog chases the man."""
    first, second, verb, setting = _meeting(rng)
    active = (f"the {first} {verb.third} the {second}", f"the {second} {verb.third} the {first}")
    return _square(
        premises=(
            f"the {second} is {verb.participle} by the {first}{setting}",
            f"the {first} is {verb.participle} by the {second}{setting}",
        ),
        hypotheses=active,
        restated=(_roles(active[0], first, second), _roles(active[1], second, first)),
        same=(_same_one(first), _same_one(second)),
        other=(_other_one(first), _other_one(second)),
        relation=NEUTRAL,
    )


def swapped_agent(rng: random.Random) -> Square:
    """Example: "It is the dog that chases the man" says who does it."""
    first, second, verb, setting = _meeting(rng)
    active = (f"the {first} {verb.third} the {second}", f"the {second} {verb.third} the {first}")
    return _square(
        premises=(active[0] + setting, active[1] + setting),
        hypotheses=(
            f"it is the {first} that {verb.third} the {second}",
            f"it is the {second} that {verb.third} the {first}",
        ),
        restated=(_roles(active[0], first, second), _roles(active[1], second, first)),
        same=(_same_one(first), _same_one(second)),
        other=(_other_one(first), _other_one(second)),
        relation=NEUTRAL,
    )


def _converse_square(first: str, second: str, relation: str, converse: str, setting: str) -> Square:
    """Example: "x above y" says "y below x"; "y above x" does not."""
    direct = (f"the {first} is {relation} the {second}", f"the {second} is {relation} the {first}")
    return _square(
        premises=(direct[0] + setting, direct[1] + setting),
        hypotheses=(f"the {second} is {converse} the {first}", f"the {first} is {converse} the {second}"),
        restated=(_roles(direct[0], first, second), _roles(direct[1], second, first)),
        same=(_same_one(first), _same_one(second)),
        other=(_other_one(first), _other_one(second)),
        relation=CONTRADICTION,
    )


def swapped_comparison(rng: random.Random) -> Square:
    """Example: "The dog is bigger than the cat" says that the cat is smaller than the dog."""
    relation, converse, nouns = rng.choice(v.COMPARATIVES)
    if rng.random() < 0.5:
        relation, converse = converse, relation
    first, second = rng.sample(nouns, 2)
    return _converse_square(first, second, f"{relation} than", f"{converse} than", "")


def swapped_position(rng: random.Random) -> Square:
    """Example: "The box is above the lamp" says that the lamp is below the box."""
    relation, converse = rng.choice(v.POSITIONS)
    if rng.random() < 0.5:
        relation, converse = converse, relation
    first, second = rng.sample(v.THINGS + v.FURNITURE, 2)
    return _converse_square(first, second, relation, converse, _setting(rng))


PHENOMENA: dict[str, tuple[Callable[[random.Random], Square], ...]] = {
    "hypernym": (hypernym_agent, hypernym_object, hypernym_downward),
    "negation": (negation_opposite, negation_truth, negation_none),
    "quantifier": (quantifier_all_none, quantifier_every_some, quantifier_member),
    "number": (number_bound, number_sum),
    "passive": (passive_hypothesis, passive_premise),
    "swapped": (swapped_agent, swapped_comparison, swapped_position),
}
"""Phenomenon -> the squares that show it."""
