"""Documents about single facts of the embedded world: what is so, said in several ways, and questions about it."""

from __future__ import annotations

import random

from tunesmith.synthetic import vocabulary as v

BEINGS = v.ANIMALS + v.PEOPLE
CLASSED = v.ANIMALS + v.PEOPLE + v.THINGS


def noun_phrase(rng: random.Random, noun: str) -> str:
    return f"the {rng.choice(v.COLOURS)} {noun}" if rng.random() < 0.2 else f"the {noun}"


def place_of(rng: random.Random) -> str:
    return f" in the {rng.choice(v.PLACES)}" if rng.random() < 0.3 else ""


def yes_no(answer: bool) -> str:
    return "Yes." if answer else "No."


def kinds(rng: random.Random) -> str:
    """What a thing is and what it is not."""
    lines = []
    for _ in range(rng.randint(2, 6)):
        noun = rng.choice(CLASSED)
        kind = v.kind_of(noun)
        other = rng.choice([name for name in v.KINDS if name != kind])
        asked = rng.choice((kind, other))
        lines.append(
            rng.choice(
                (
                    f"{v.article(noun).capitalize()} is {v.article(kind)}.",
                    f"{v.article(noun).capitalize()} is {v.article(kind)}. It is not {v.article(other)}.",
                    f"{v.plural(noun).capitalize()} are {v.plural(kind)}.",
                    f"What is {v.article(noun)}? {v.article(kind).capitalize()}.",
                    f"Is {v.article(noun)} {v.article(asked)}? {yes_no(asked == kind)}",
                    f"{v.article(noun)} is {'' if asked == kind else 'not '}{v.article(asked)}.",
                    f"All {v.plural(noun)} are {v.plural(kind)}, but not all {v.plural(kind)} are {v.plural(noun)}.",
                    f"Name {v.article(kind)}: {noun}.",
                )
            )
        )
    return " ".join(lines)


def meeting(rng: random.Random) -> str:
    """Who does what to whom, said in several ways, with questions."""
    first, second = rng.sample(BEINGS, 2)
    verb, where = rng.choice(v.MEETING_VERBS), place_of(rng)
    agent, patient = noun_phrase(rng, first), noun_phrase(rng, second)
    active = f"{agent} {verb.third} {patient}"
    passive = f"{patient} is {verb.participle} by {agent}"
    cleft = f"it is {agent} that {verb.third} {patient}"
    opening, *ways = rng.sample([active, passive, cleft, active, passive], 4)
    asked = rng.choice((active, passive, cleft))
    swapped = rng.choice(
        (
            f"{patient} {verb.third} {agent}",
            f"{agent} is {verb.participle} by {patient}",
            f"it is {patient} that {verb.third} {agent}",
        )
    )
    claims = [(asked, True), (swapped, False)]
    rng.shuffle(claims)
    parts = [v.sentence(opening + where)]
    parts += rng.sample(
        [
            f"In other words, {ways[0]}.",
            f"That means: {ways[1]}.",
            f"So {active}.",
            f"Who {verb.third} {patient}? {v.sentence(agent)}",
            f"Whom does {agent} {verb.base}? {v.sentence(patient)}",
            f"Who is {verb.participle}? {v.sentence(patient)}",
            f"Is it true that {claims[0][0]}? {yes_no(claims[0][1])}",
            f"Is it true that {claims[1][0]}? {yes_no(claims[1][1])}",
            f"It is not true that {swapped}.",
            f"We do not know that {swapped}.",
            f"{v.sentence(active)} Swapped: {swapped}.",
            f"{v.sentence(active)} The same: {passive}.",
        ],
        rng.randint(2, 5),
    )
    return " ".join(parts)


def handling(rng: random.Random) -> str:
    """Who does what to which thing, with the classes of both and what is unknown."""
    agent, thing, verb, where = rng.choice(BEINGS), rng.choice(v.THINGS), rng.choice(v.HANDLING_VERBS), place_of(rng)
    agent_kind, thing_kind = v.kind_of(agent), v.kind_of(thing)
    an_agent, a_thing = v.article(agent_kind), v.article(thing_kind)
    other = rng.choice([name for name in v.THING_KINDS if name != thing_kind])
    being = rng.choice((agent_kind, "person" if agent_kind == "animal" else "animal"))
    held = rng.choice((thing_kind, other))
    parts = [v.sentence(f"{noun_phrase(rng, agent)} {verb.third} {noun_phrase(rng, thing)}{where}")]
    parts += rng.sample(
        [
            f"{v.article(agent).capitalize()} is {an_agent}, so {an_agent} {verb.third} the {thing}.",
            f"{v.article(thing).capitalize()} is {a_thing}, so the {agent} {verb.third} {a_thing}.",
            f"Does {v.article(being)} {verb.base} the {thing}? {yes_no(being == agent_kind)}",
            f"Does the {agent} {verb.base} {v.article(held)}? {yes_no(held == thing_kind)}",
            f"What does the {agent} {verb.base}? The {thing}.",
            f"Who {verb.third} the {thing}? The {agent}.",
            f"The {agent} {verb.third} something.",
            f"Something {verb.third} the {thing}.",
            f"The {thing} is {verb.participle} by the {agent}.",
        ],
        rng.randint(2, 4),
    )
    return " ".join(parts)


def some_member(rng: random.Random) -> str:
    """A class word leaves open which member is meant."""
    noun = rng.choice(CLASSED)
    kind, verb, place = v.kind_of(noun), rng.choice(v.MEETING_VERBS), rng.choice(v.PLACES)
    viewer = rng.choice(v.NAMES)
    general = rng.random() < 0.5
    told = v.article(kind) if general else f"the {noun}"
    return (
        f"{viewer} {verb.third} {told} in the {place}. Is it {v.article(kind)}? Yes. Is it the {noun}? "
        f"{'It may be, or it may not be.' if general else 'Yes.'} "
        f"{v.article(kind).capitalize()} {'may not be' if general else 'may be'} the {noun}. "
        f"Does {viewer} {verb.base} something? Yes."
    )


def negations(rng: random.Random) -> str:
    """What is so, what is not so, and opposite qualities."""
    if rng.random() < 0.5:
        first, second, nouns = rng.choice(v.OPPOSITES)
        if rng.random() < 0.5:
            first, second = second, first
        noun = noun_phrase(rng, rng.choice(nouns))
        asked = rng.choice((first, second))
        parts = rng.sample(
            [
                f"{v.sentence(f'{noun} is {first}')} It is not {second}.",
                f"{v.sentence(f'{noun} is not {second}')} It is {first}.",
                f"{first} means not {second}.",
                f"{v.sentence(f'{noun} is {first}')} Is it {asked}? {yes_no(asked == first)}",
                f"{v.sentence(f'{noun} is {first}')} Is it true that {noun} is not {asked}? {yes_no(asked != first)}",
                f"{v.sentence(f'{noun} is not {asked}')} This denies that it is {asked}.",
            ],
            rng.randint(2, 4),
        )
        return " ".join(parts)
    agent, patient, verb = *rng.sample(BEINGS, 2), rng.choice(v.MEETING_VERBS)
    does = rng.random() < 0.5
    positive, negative = f"the {agent} {verb.third} the {patient}", f"the {agent} does not {verb.base} the {patient}"
    told = positive if does else negative
    parts = [
        v.sentence(told + place_of(rng)),
        *rng.sample(
            [
                f"Does the {agent} {verb.base} the {patient}? {yes_no(does)}",
                f"It is {'' if does else 'not '}true that {positive}.",
                f"Is it true that {positive}? {yes_no(does)}",
                f"Is it not true that {positive}? {yes_no(not does)}",
                f"So {told}.",
                f"This says {'yes' if does else 'no'}.",
                f"{v.sentence(told)} This says {'yes' if does else 'no'}.",
            ],
            rng.randint(2, 4),
        ),
    ]
    return " ".join(parts)


def quantifiers(rng: random.Random) -> str:
    """All, every, some, only some, no."""
    noun, verb, where = rng.choice((*BEINGS, "animal", "person")), rng.choice(v.RESTING_VERBS), place_of(rng)
    nouns, colour = v.plural(noun), rng.choice(v.COLOURS)
    member, general = noun, noun in ("animal", "person")
    outsider = None
    if general:
        member = rng.choice(v.KINDS[noun])
        outsider = rng.choice(v.PEOPLE if noun == "animal" else v.ANIMALS)
    else:
        member = f"{colour} {noun}"
    case = rng.choice(("all", "every", "no", "some"))
    opening = {
        "all": f"all {nouns} {verb.base}{where}",
        "every": f"every {noun} {verb.third}{where}",
        "no": rng.choice((f"no {nouns} {verb.base}{where}", f"no {noun} {verb.third}{where}")),
        "some": f"only some {nouns} {verb.base}{where}",
    }[case]
    parts = [v.sentence(opening)]
    if case in ("all", "every"):
        options = [
            f"So the {member} {verb.third}.", f"Does the {member} {verb.base}? Yes.",
            f"Do all {nouns} {verb.base}? Yes.", f"Every {noun} {verb.third}.", f"All {nouns} {verb.base}.",
            "Every means all.", "This says yes.",
            f"It is not true that the {member} does not {verb.base}.", "Do only some? No, all.",
        ]  # fmt: skip
    elif case == "no":
        options = [
            f"So the {member} does not {verb.base}.", f"Does the {member} {verb.base}? No.",
            f"Do all {nouns} {verb.base}? No, none.", f"It is not true that the {member} {verb.third}.",
            "This says no.",
        ]  # fmt: skip
    else:
        options = [
            f"Not all {nouns} {verb.base}.", f"Do all {nouns} {verb.base}? No, only some.", "Only some means not all.",
            f"It is not true that all {nouns} {verb.base}.", "Only some does not mean all.",
        ]  # fmt: skip
    if outsider:
        options += [
            f"Does the {outsider} {verb.base}? We do not know, {v.article(outsider)} is not {v.article(noun)}.",
            f"The {member} is {v.article(noun)}.",
        ] * 2
    return " ".join(parts + rng.sample(options, rng.randint(2, 4)))


def converses(rng: random.Random) -> str:
    """Bigger and smaller, above and below."""
    if rng.random() < 0.5:
        relation, converse, nouns = rng.choice(v.COMPARATIVES)
        relation, converse, where = f"{relation} than", f"{converse} than", ""
    else:
        relation, converse = rng.choice(v.POSITIONS)
        nouns, where = v.THINGS + v.FURNITURE, place_of(rng)
    if rng.random() < 0.5:
        relation, converse = converse, relation
    first, second = (noun_phrase(rng, noun) for noun in rng.sample(nouns, 2))
    told, turned = f"{first} is {relation} {second}", f"{second} is {converse} {first}"
    wrong, turned_wrong = f"{second} is {relation} {first}", f"{first} is {converse} {second}"
    asked, answer = rng.choice(((told, True), (turned, True), (wrong, False), (turned_wrong, False)))
    parts = rng.sample(
        [
            f"In other words, {turned}.",
            f"That means: {turned}.",
            f"So {turned}.",
            f"The same: {turned}.",
            f"Swapped: {wrong}.",
            f"It is not true that {rng.choice((wrong, turned_wrong))}.",
            f"What is {relation} {second}? {v.sentence(first)}",
            f"What is {converse} {first}? {v.sentence(second)}",
            f"Is it true that {asked}? {yes_no(answer)}",
        ],
        rng.randint(2, 5),
    )
    return " ".join([v.sentence(told + where), *parts])


def comparisons(rng: random.Random) -> str:
    """More and fewer, in words and in figures."""
    lines = []
    for _ in range(rng.randint(3, 8)):
        words = rng.random() < 0.7
        first, second = rng.sample(range(13), 2)
        one, two = (v.NUMBER_WORDS[n] if words else str(n) for n in (first, second))
        more, fewer = yes_no(first > second), yes_no(first < second)
        noun = v.plural(rng.choice(BEINGS))
        lines.append(
            rng.choice(
                (
                    f"{one} is {'' if first > second else 'not '}more than {two}.",
                    f"{one} is {'' if first < second else 'not '}fewer than {two}.",
                    f"Is {one} more than {two}? {more}",
                    f"Is {one} fewer than {two}? {fewer}",
                    f"{one.capitalize()} {noun} are {'more' if first > second else 'fewer'} than {two} {noun}.",
                    f"{one} is {one}.",
                    f"{one} is not {two}.",
                    f"After {one} comes {v.NUMBER_WORDS[first + 1] if words else first + 1}." if first < 12 else "",
                )
            )
        )
    return " ".join(line for line in lines if line)


def groups(rng: random.Random) -> str:
    """How many of each kind, and of both together."""
    kind = rng.choice(list(v.KINDS))
    first, second = rng.sample(v.KINDS[kind], 2)
    one, two = rng.randint(1, 6), rng.randint(1, 6)
    words, one_group = v.NUMBER_WORDS, v.counted(one, first, words=True)
    return " ".join(
        [
            v.sentence(f"{one_group} and {v.counted(two, second, words=True)} rest{place_of(rng)}"),
            *rng.sample(
                [
                    f"{words[one]} and {words[two]} make {words[one + two]}.",
                    f"How many {v.plural(first)}? {words[one].capitalize()}.",
                    f"How many {v.plural(second)}? {words[two].capitalize()}.",
                    f"How many {v.plural(kind)}? {words[one + two].capitalize()}.",
                    f"That makes {v.counted(one + two, kind, words=True)}.",
                ],
                rng.randint(2, 4),
            ),
        ]
    )
