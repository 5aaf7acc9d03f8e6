"""Squares of sentences: balanced by construction, and true."""

from __future__ import annotations

import random
from collections import defaultdict

from tunesmith.synthetic import nli_squares
from tunesmith.synthetic import vocabulary as v


def test_in_every_square_each_sentence_stands_once_with_each_label() -> None:
    rng, swept = random.Random(5), 0
    for makers in nli_squares.PHENOMENA.values():
        for maker in makers:
            for _ in range(30):
                square = maker(rng)
                swept += 1
                for key in ("premise", "hypothesis"):
                    by_text: dict[str, list[int]] = defaultdict(list)
                    for reading in square:
                        by_text[getattr(reading, key)].append(reading.label)
                    assert sorted(by_text.values(), key=str) == [[0, 1], [1, 0]], (maker, by_text)
    assert swept == 30 * sum(len(makers) for makers in nli_squares.PHENOMENA.values()) >= 480


def test_number_readings_are_true_statements() -> None:
    words = {word: number for number, word in enumerate(v.NUMBER_WORDS)}
    rng = random.Random(1)
    for _ in range(200):
        for reading in nli_squares.number_bound(rng):
            have = words[reading.premise.split()[0].lower()]
            more, limit = reading.hypothesis.startswith("More"), words[reading.hypothesis.split()[2]]
            assert reading.label == (have > limit if more else have < limit)
        for reading in nli_squares.number_sum(rng):
            parts = reading.premise.lower().split()
            total = words[parts[0]] + words[parts[3]]
            assert reading.label == (words[reading.hypothesis.split()[0].lower()] == total)
