"""The words of the embedded world: who lives in it, what is there, what happens, and which combinations are held out.

It builds no sentences beyond articles, plurals and verb forms; those belong to the generators.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

ANIMALS = ("dog", "cat", "horse", "cow", "bird", "fox", "bear", "goat", "rabbit", "duck")
PEOPLE = ("man", "woman", "boy", "girl", "teacher", "farmer", "doctor", "baker", "driver", "painter")
FRUITS = ("apple", "pear", "plum", "lemon", "banana", "melon")
TOYS = ("ball", "doll", "kite", "robot", "puzzle")
TOOLS = ("hammer", "saw", "spade", "axe", "brush")
INSTRUMENTS = ("drum", "flute", "violin", "guitar", "horn")
VEHICLES = ("car", "boat", "cart", "bus", "train")
FURNITURE = ("box", "chair", "table", "lamp", "bed", "door")

KINDS: dict[str, tuple[str, ...]] = {
    "animal": ANIMALS,
    "person": PEOPLE,
    "fruit": FRUITS,
    "toy": TOYS,
    "tool": TOOLS,
    "instrument": INSTRUMENTS,
    "vehicle": VEHICLES,
}
"""Class name -> the nouns under it. Furniture stands under no class: "thing" would fit everything."""

THING_KINDS = ("fruit", "toy", "tool", "instrument", "vehicle")
THINGS = tuple(noun for kind in THING_KINDS for noun in KINDS[kind])
COUNTABLE = FRUITS + TOYS + TOOLS
"""Things that people own by the number in word problems and documents."""

NAMES = (
    "Anna", "Tom", "Ben", "Lily", "Max", "Nina", "Omar", "Ruth",
    "Sam", "Vera", "Ivan", "Kate", "Leo", "Mia", "Hugo", "Rosa",
)  # fmt: skip
TOWNS = ("Arden", "Brook", "Calder", "Dover", "Elton", "Fenton", "Harlow", "Kirby", "Marlow", "Norton")
PLACES = ("garden", "kitchen", "barn", "forest", "market", "school", "park", "yard")
JOBS = ("teacher", "farmer", "doctor", "baker", "driver", "painter")
COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "grey")

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

_IRREGULAR_PLURALS = {"man": "men", "woman": "women", "person": "people"}


@dataclass(frozen=True)
class Verb:
    """The forms of a verb: "chase", "chases", "chased" (participle), "chasing"."""

    base: str
    third: str
    participle: str
    gerund: str


def _verb(base: str, participle: str, gerund: str) -> Verb:
    third = f"{base}es" if base.endswith(("sh", "ch")) else f"{base[:-1]}ies" if base == "carry" else f"{base}s"
    return Verb(base, third, participle, gerund)


CHASE = _verb("chase", "chased", "chasing")
SEE = _verb("see", "seen", "seeing")
FOLLOW = _verb("follow", "followed", "following")
HELP = _verb("help", "helped", "helping")
PUSH = _verb("push", "pushed", "pushing")
WATCH = _verb("watch", "watched", "watching")
LEAD = _verb("lead", "led", "leading")
FIND = _verb("find", "found", "finding")
HOLD = _verb("hold", "held", "holding")
TAKE = _verb("take", "taken", "taking")
CARRY = _verb("carry", "carried", "carrying")
MOVE = _verb("move", "moved", "moving")

MEETING_VERBS = (CHASE, SEE, FOLLOW, HELP, PUSH, WATCH, LEAD, FIND)
"""What one living being does to another."""

HANDLING_VERBS = (SEE, PUSH, WATCH, FIND, HOLD, TAKE, CARRY, MOVE)
"""What a living being does to a thing."""

RESTING_VERBS = (
    _verb("sleep", "slept", "sleeping"),
    _verb("run", "run", "running"),
    _verb("sing", "sung", "singing"),
    _verb("swim", "swum", "swimming"),
    _verb("wait", "waited", "waiting"),
    _verb("jump", "jumped", "jumping"),
    _verb("rest", "rested", "resting"),
    _verb("dance", "danced", "dancing"),
)
"""What a living being does alone."""

ALL_VERBS = tuple(dict.fromkeys(MEETING_VERBS + HANDLING_VERBS + RESTING_VERBS))

OPPOSITES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("open", "closed", ("box", "door")),
    ("empty", "full", ("box", "boat", "cart", "bus", "train")),
    ("clean", "dirty", FURNITURE + VEHICLES + TOOLS),
    ("wet", "dry", FURNITURE + TOYS + ANIMALS),
    ("new", "old", FURNITURE + TOYS + TOOLS + INSTRUMENTS + VEHICLES),
    ("big", "small", ANIMALS + FRUITS + TOYS + VEHICLES),
    ("hot", "cold", FURNITURE + FRUITS + TOOLS),
    ("awake", "asleep", ANIMALS + PEOPLE),
    ("happy", "sad", ANIMALS + PEOPLE),
)
"""Two qualities of which exactly one holds, and the nouns that have one of them."""

COMPARATIVES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("bigger", "smaller", ANIMALS + FRUITS + TOYS + VEHICLES),
    ("older", "younger", ANIMALS + PEOPLE),
    ("faster", "slower", ANIMALS + PEOPLE + VEHICLES),
    ("heavier", "lighter", FRUITS + TOOLS + INSTRUMENTS + FURNITURE),
    ("taller", "shorter", PEOPLE + ANIMALS),
)
"""Relation, its converse, and the nouns it orders: "x is bigger than y" means "y is smaller than x"."""

POSITIONS: tuple[tuple[str, str], ...] = (("above", "below"), ("left of", "right of"), ("behind", "in front of"))
"""A place relation and its converse."""


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(noun: str) -> str:
    """The plural of a noun of this world."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    return f"{noun}es" if noun.endswith(("s", "x", "sh", "ch")) else f"{noun}s"


def counted(number: int, noun: str, *, words: bool = False) -> str:
    """A number and its noun: "1 apple", "3 apples", or "three apples" with ``words``."""
    figure = NUMBER_WORDS[number] if words else str(number)
    return f"{figure} {noun if number == 1 else plural(noun)}"


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


@cache
def kind_of(noun: str) -> str:
    """The class that a noun belongs to; jobs count as people.

    Raises:
        KeyError: the noun has no class in this world.
    """
    for kind, nouns in KINDS.items():
        if noun in nouns:
            return kind
    raise KeyError(noun)


# Held-out combinations ------------------------------------------------------------------------------------------
#
# A combination is a pair of content words that one text uses together. One pair in HELD_OUT_ONE_IN is held out: no
# training row contains such a pair, every held-out row contains at least one. The choice is a checksum of the two
# words, so it is the same for every seed, process and machine.

HELD_OUT_ONE_IN = 12


def _content_words() -> dict[str, tuple[str, str]]:
    """Surface form -> (sort, lemma), for every word that takes part in combinations."""
    table: dict[str, tuple[str, str]] = {}
    for noun in dict.fromkeys(ANIMALS + PEOPLE + THINGS + FURNITURE):
        table[noun] = table[plural(noun)] = ("noun", noun)
    for verb in ALL_VERBS:
        for form in (verb.base, verb.third, verb.participle, verb.gerund):
            table[form] = ("verb", verb.base)
    for first, second, _ in OPPOSITES:
        table[first], table[second] = ("quality", first), ("quality", second)
    for name in NAMES:
        table[name.lower()] = ("name", name)
    for town in TOWNS:
        table[town.lower()] = ("town", town)
    return table


_CONTENT_WORDS = _content_words()
_WORD = re.compile(r"[a-z]+")


def content_words(text: str) -> list[tuple[str, str]]:
    """The content words of a text as (sort, lemma), each once, sorted."""
    return sorted({_CONTENT_WORDS[word] for word in _WORD.findall(text.lower()) if word in _CONTENT_WORDS})


@cache
def is_held_out(first: str, second: str) -> bool:
    """Whether the pair of lemmas, in either order, is kept out of all training rows."""
    return zlib.crc32("+".join(sorted((first, second))).encode()) % HELD_OUT_ONE_IN == 0


def held_out_pairs(texts: Iterable[str]) -> list[tuple[str, str]]:
    """The held-out combinations that the texts, taken together, contain.

    Two words of one sort form a combination only when both are nouns: opposite qualities and verbs meet by nature.
    """
    words = content_words(" ".join(texts))
    pairs = (pair for pair in combinations(words, 2) if pair[0][0] != pair[1][0] or pair[0][0] == "noun")
    return [(first[1], second[1]) for first, second in pairs if is_held_out(first[1], second[1])]


@cache
def all_words() -> tuple[str, ...]:
    """Every surface form with an entry of its own, sorted: what a vocabulary of this world should know."""
    extra = set(KINDS) | {plural(kind) for kind in KINDS} | set(COLOURS) | set(PLACES) | set(NUMBER_WORDS)
    extra |= {word for first, second, _ in COMPARATIVES for word in (first, second)}
    return tuple(sorted(set(_CONTENT_WORDS) | extra))
