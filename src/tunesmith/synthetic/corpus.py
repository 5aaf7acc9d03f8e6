"""Pretraining text about the embedded world: short documents of facts, paraphrases, questions and sums.

It contains no fine-tuning task: no premise with a hypothesis, no label, no instruction template, no worked word
problem in the answer format of the reasoning rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence

from tunesmith.synthetic import vocabulary as v
from tunesmith.synthetic.corpus_facts import (
    BEINGS,
    CLASSED,
    comparisons,
    converses,
    groups,
    handling,
    kinds,
    meeting,
    negations,
    place_of,
    quantifiers,
    some_member,
)


def sums(rng: random.Random) -> str:
    """Additions, subtractions and small products."""
    lines = []
    for _ in range(rng.randint(4, 10)):
        form = rng.randrange(5)
        if form <= 1:
            first, second = rng.randint(0, 20), rng.randint(0, 20)
            lines.append(f"{first} + {second} = {first + second}.")
        elif form == 2:
            first, second = sorted((rng.randint(0, 30), rng.randint(0, 20)), reverse=True)
            lines.append(f"{first} - {second} = {first - second}.")
        elif form == 3:
            first, second = rng.randint(1, 6), rng.randint(1, 6)
            lines.append(f"{first} * {second} = {first * second}.")
        else:
            first, second = rng.randint(0, 6), rng.randint(0, 6)
            words = v.NUMBER_WORDS
            lines.append(f"{words[first]} and {words[second]} make {words[first + second]}.")
    return " ".join(lines)


def story(rng: random.Random) -> str:
    """Somebody's things become more or fewer, with questions on the way."""
    name, other = rng.sample(v.NAMES, 2)
    noun = rng.choice(v.COUNTABLE)
    nouns, have = v.plural(noun), rng.randint(2, 12)
    parts = [f"{name} has {v.counted(have, noun)}."]
    for _ in range(rng.randint(1, 3)):
        change = rng.randint(1, 9)
        if have > change and rng.random() < 0.5:
            parts.append(
                rng.choice(
                    (
                        f"{name} gives {other} {v.counted(change, noun)}.",
                        f"{name} loses {v.counted(change, noun)}.",
                        f"{name} sells {v.counted(change, noun)}.",
                    )
                )
            )
            line, have = f"{have} - {change} = {have - change}.", have - change
        else:
            parts.append(
                rng.choice(
                    (
                        f"{other} gives {name} {v.counted(change, noun)}.",
                        f"{name} finds {v.counted(change, noun)}.",
                        f"{name} buys {v.counted(change, noun)}.",
                    )
                )
            )
            line, have = f"{have} + {change} = {have + change}.", have + change
        if rng.random() < 0.7:
            parts.append(line)
        if rng.random() < 0.6:
            parts.append(f"Now {name} has {v.counted(have, noun)}.")
    parts.append(f"How many {nouns} does {name} have? {have}.")
    return " ".join(parts)


def _person_facts(rng: random.Random, name: str) -> list[tuple[str, str, str]]:
    """(sentence, question, answer) for one person."""
    number, noun = rng.randint(2, 12), rng.choice(v.COUNTABLE)
    job, town, animal, fruit = rng.choice(v.JOBS), rng.choice(v.TOWNS), rng.choice(v.ANIMALS), rng.choice(v.FRUITS)
    colour, thing, place = rng.choice(v.COLOURS), rng.choice(v.INSTRUMENTS + v.VEHICLES), rng.choice(v.PLACES)
    return [
        (f"{name} lives in {town}.", f"Where does {name} live?", town),
        (f"{name} is {v.article(job)}.", f"What is the job of {name}?", job),
        (f"{name} keeps {v.article(animal)}.", f"Which animal does {name} keep?", animal),
        (f"{name} likes {v.plural(fruit)}.", f"What does {name} like?", v.plural(fruit)),
        (f"{name} has {v.counted(number, noun)}.", f"How many {v.plural(noun)} does {name} have?", str(number)),
        (f"{name} owns {v.article(colour)} {thing}.", f"What colour is the {thing} of {name}?", colour),
        (f"{name} waits in the {place}.", f"Where does {name} wait?", f"the {place}"),
    ]


def people(rng: random.Random) -> str:
    """Short paragraphs about several people, then questions about them."""
    names = rng.sample(v.NAMES, rng.randint(2, 5))
    facts, paragraphs = [], []
    for name in names:
        chosen = rng.sample(_person_facts(rng, name), rng.randint(2, 4))
        facts += chosen
        paragraphs.append(" ".join(text for text, _, _ in chosen))
    joiner = rng.choice((" ", "\n", "\n\n"))
    numbered = rng.random() < 0.3
    if numbered:
        paragraphs = [f"{index}: {text}" for index, text in enumerate(paragraphs, 1)]
    asked = rng.sample(facts, min(len(facts), rng.randint(2, 5)))
    mark = rng.choice((("Question: ", "Answer: "), ("", "")))
    plain = rng.random() < 0.5
    questions = "\n".join(
        f"{mark[0]}{question} {mark[1]}{answer if plain else v.sentence(answer)}" for _, question, answer in asked
    )
    who = [f"Who {text.removeprefix(names[0]).strip().rstrip('.')}? {names[0]}." for text, _, _ in facts[:1]]
    return f"{joiner.join(paragraphs)}\n{questions}" + (f"\n{who[0]}" if rng.random() < 0.3 else "")


def record(rng: random.Random) -> str:
    """A JSON object and what it says."""
    name = rng.choice(v.NAMES)
    values: dict[str, object] = {
        "name": name,
        "town": rng.choice(v.TOWNS),
        "animal": rng.choice(v.ANIMALS),
        "count": rng.randint(0, 12),
        "colour": rng.choice(v.COLOURS),
        "note": f"the {rng.choice(v.ANIMALS)} {rng.choice(v.RESTING_VERBS).third} in the {rng.choice(v.PLACES)}.",
    }
    keys = rng.sample(list(values), rng.randint(2, 5))
    chosen = {key: values[key] for key in keys}
    key = rng.choice(keys)
    return f"{json.dumps(chosen)}\nWhat is the {key}? {values[key]}"


def listing(rng: random.Random) -> str:
    """Numbered steps and lists, which are read out again."""
    words = rng.sample(v.all_words(), rng.randint(3, 8))
    form = rng.randrange(3)
    if form == 0:
        return " ".join(f"step {index}: {word}." for index, word in enumerate(words, 1))
    if form == 1:
        return f"List: {', '.join(words)}. First: {words[0]}. Last: {words[-1]}. Again: {', '.join(words)}."
    index = rng.randrange(len(words) - 1)
    return f"Words: {' '.join(words)}. What comes after {words[index]}? {words[index + 1]}. Again: {' '.join(words)}."


def compared(rng: random.Random) -> str:
    """Pairs of statements that say the same or have two words swapped, one pair after the other."""
    lines = []
    for _ in range(rng.randint(3, 7)):
        form = rng.randrange(4)
        if form == 0:
            first, second = rng.sample(v.all_words(), 2)
            told, swapped = f"{first} {second}", f"{second} {first}"
            turned = told
        elif form == 1:
            relation, converse, nouns = rng.choice(v.COMPARATIVES)
            first, second = rng.sample(nouns, 2)
            told, swapped = (
                f"the {first} is {relation} than the {second}",
                f"the {second} is {relation} than the {first}",
            )
            turned = f"the {second} is {converse} than the {first}"
        elif form == 2:
            relation, converse = rng.choice(v.POSITIONS)
            first, second = rng.sample(v.THINGS + v.FURNITURE, 2)
            told, swapped = f"the {first} is {relation} the {second}", f"the {second} is {relation} the {first}"
            turned = f"the {second} is {converse} the {first}"
        else:
            first, second = rng.sample(BEINGS, 2)
            verb = rng.choice(v.MEETING_VERBS)
            told, swapped = f"the {first} {verb.third} the {second}", f"the {second} {verb.third} the {first}"
            turned = f"the {second} is {verb.participle} by the {first}"
        one = rng.choice((told, told, turned))
        two, answer = rng.choice(((told, "the same"), (swapped, "swapped")))
        lines.append(rng.choice((f"{one}. {two}, {answer}.", f"{one}. Asked: {two}, {answer}.")))
    return " ".join(lines)


def checked(rng: random.Random) -> str:
    """A class, a number or a quality in question, and whether something meets it."""
    lines = []
    for _ in range(rng.randint(4, 9)):
        form = rng.randrange(4)
        if form <= 1:
            noun = rng.choice(CLASSED)
            kind = v.kind_of(noun)
            asked = v.article(kind if rng.random() < 0.5 else rng.choice([name for name in v.KINDS if name != kind]))
            fact = f"{v.article(noun)} is {'' if asked == v.article(kind) else 'not '}{asked}"
        elif form == 2:
            number, limit = rng.sample(range(1, 13), 2)
            more = rng.random() < 0.5
            asked = f"{'more' if more else 'fewer'} than {v.NUMBER_WORDS[limit]}"
            fact = f"{v.NUMBER_WORDS[number]} is {'' if (number > limit) == more else 'not '}{asked}"
        else:
            one, two, _ = rng.choice(v.OPPOSITES)
            has, denied = rng.choice(((one, two), (two, one), (one, one), (two, two)))
            asked = f"not {denied}"
            fact = f"{denied} denies it" if has == denied else f"{has} means not {denied}"
            lines.append(f"It is {has}.")
        lines.append(f"{rng.choice(('Asked', 'Is it'))}: {asked}. {fact}.")
    return " ".join(lines)


Mixture = tuple[tuple[Callable[[random.Random], str], int], ...]
MIXTURE: Mixture = (
    (kinds, 10),
    (meeting, 16),
    (handling, 10),
    (some_member, 4),
    (negations, 9),
    (quantifiers, 9),
    (converses, 12),
    (comparisons, 9),
    (groups, 6),
    (sums, 8),
    (story, 8),
    (people, 10),
    (record, 4),
    (listing, 5),
)
"""Document makers and how often each is drawn."""
COMPARING_MIXTURE: Mixture = (*MIXTURE, (compared, 50), (checked, 40))
"""The same with much comparing, for the second stage: it takes statements that can already be read and copied."""


def documents(seed: int = 0, mixture: Mixture = MIXTURE) -> Iterator[str]:
    """Documents without end, always the same ones for a seed and a mixture."""
    rng = random.Random(f"corpus {seed}")
    makers = [maker for maker, _ in mixture]
    weights = [weight for _, weight in mixture]
    while True:
        yield rng.choices(makers, weights)[0](rng)


def _salad(pieces: Sequence[str], rng: random.Random, fewest: int, most: int) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.randint(fewest, most)))


def dictation(pieces: Sequence[str], rng: random.Random) -> str:
    """Random words, sometimes random pieces of text, said twice.

    It teaches copying, and gives every piece of a vocabulary some use.
    """
    if rng.random() < 0.2:
        chosen = _salad(pieces, rng, 4, 16)
    else:
        chosen = "".join(f" {word}" for word in rng.sample(v.all_words(), rng.randint(4, 24)))
    return f"{chosen}\n{chosen}" if rng.random() < 0.5 else f"Say:{chosen}. Again:{chosen}."


def _statement(rng: random.Random) -> tuple[str, str]:
    """A statement as it may be put, and the same in the plainest words."""
    first, second = rng.sample(BEINGS, 2)
    verb, rest, noun = rng.choice(v.MEETING_VERBS), rng.choice(v.RESTING_VERBS), rng.choice(BEINGS)
    nouns, number, where = v.plural(noun), rng.choice(v.NUMBER_WORDS[2:]), place_of(rng)
    active = f"the {first} {verb.third} the {second}"
    agent, handle, thing = rng.choice(BEINGS), rng.choice(v.HANDLING_VERBS), rng.choice(v.THINGS)
    relation, _, compared = rng.choice(v.COMPARATIVES)
    one, two = rng.sample(compared, 2)
    above, left, right = rng.choice(rng.choice(v.POSITIONS)), *rng.sample(v.THINGS + v.FURNITURE, 2)
    quality, opposite, having = rng.choice(v.OPPOSITES)
    owner = rng.choice(having)
    kind = rng.choice(("animal", "person"))
    plain = rng.choice(
        (
            active,
            active,
            f"the {first} does not {verb.base} the {second}",
            f"the {agent} {handle.third} the {thing}",
            f"the {agent} {handle.third} the {thing}",
            f"the {one} is {relation} than the {two}",
            f"the {left} is {above} the {right}",
            f"the {owner} is {rng.choice((quality, opposite))}",
            f"{rng.choice(('every', 'no'))} {rng.choice((noun, kind))} {rest.third}",
            f"{rng.choice(('all', 'no', 'only some', number))} {nouns} {rest.base}",
        )
    )
    if plain == active:
        passive = f"the {second} is {verb.participle} by the {first}"
        return rng.choice((active, passive, f"it is the {first} that {verb.third} the {second}")) + where, plain
    return plain + where, plain


_REMARKS = (
    "Read each line with care.", "Write your reply in one line.", "Use plain words.", "Say what each line says.",
    "Provide the text in JSON format.", "Think of what you read and then write.", "Give your reasoning in steps.",
    "This is the final text, so read it again.", "Determine which line is meant.", "The format is free: (a) or (b).",
    "If in doubt, read it twice.", "Keep the order of the lines.", "A number is 0, 1 or more.", "Use short lines...",
    "You can provide an answer to a question.", "Context helps: read all of it.", "Here is what they say:",
    'Write it as {"line": "..."} or in plain text.', "Leave out where it is.", "Use the chain of lines from the start.",
    "A helpful reply is short.", "The question comes last.", "Look at it step by step.",
    "Repeat what was said by each.", "Give the relevant line only.", "To solve it, read it.",
    "Some lines are long and some are short.", "Thought comes first.",
)  # fmt: skip
"""Remarks that stand between a text and its use, as instructions do elsewhere."""
_HEADINGS = (
    "First", "Second", "Note", "Letter", "Text", "Line", "Story", "News", "Claim", "Question", "Idea", *v.NAMES,
)  # fmt: skip


def recall(pieces: Sequence[str], rng: random.Random) -> str:
    """Statements under headings, other text, then the statements again, in plain words or as JSON."""
    headings = rng.sample(_HEADINGS, rng.randint(1, 4))
    statements = [_statement(rng) for _ in headings]
    told = rng.choice(("\n", " ")).join(
        f"{heading}: {v.sentence(text)}" for heading, (text, _) in zip(headings, statements, strict=True)
    )
    remarks = " ".join(rng.sample(_REMARKS, rng.randint(0, 6)))
    if rng.random() < 0.15:
        remarks += _salad(pieces, rng, 4, 16)
    between = f"\n\n{remarks}\n" if remarks else "\n"
    plain = {heading: text for heading, (_, text) in zip(headings, statements, strict=True)}
    asked = headings if rng.random() < 0.5 else rng.sample(headings, rng.randint(1, len(headings)))
    form = rng.randrange(4)
    if form == 0:
        again = json.dumps({heading.lower(): f"{plain[heading]}." for heading in asked})
    elif form == 1:
        again = " ".join(f"{heading} says {plain[heading]}." for heading in asked)
    elif form == 2:
        again = " ".join(f"{index}: {plain[heading]}." for index, heading in enumerate(headings, 1))
    else:
        again = "\n".join(f"{heading}: {plain[heading]}." for heading in asked)
    return f"{told}{between}{again}"
