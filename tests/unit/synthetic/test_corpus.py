"""The pretraining text: true, repeatable, and without the tasks that are fine-tuned on it."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from tunesmith.synthetic import corpus

DOCUMENTS = list(itertools.islice(corpus.documents(0), 4000))


def test_documents_are_the_same_for_a_seed() -> None:
    assert DOCUMENTS[:200] == list(itertools.islice(corpus.documents(0), 200))
    assert DOCUMENTS[:200] != list(itertools.islice(corpus.documents(1), 200))


def test_no_task_is_in_the_text() -> None:
    text = "\n".join(DOCUMENTS).lower()
    assert len(text) > 300_000
    for word in ("premise", "hypothesis", "entail", "label", "predicted", "thought_process", "[inst]", "####"):
        assert word not in text, word


@pytest.mark.parametrize("maker", [maker for maker, _ in corpus.MIXTURE], ids=lambda maker: maker.__name__)
def test_every_maker_writes_short_plain_text(maker) -> None:  # type: ignore[no-untyped-def]
    for seed in range(50):
        text = maker(random.Random(seed))
        assert 10 < len(text) < 1500
        assert text.isascii()
        assert "  " not in text
        assert "None" not in text


def test_sums_are_true() -> None:
    text = "\n".join(DOCUMENTS)
    equations = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)\.", text)
    assert len(equations) > 1000
    work = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    assert all(work[sign](int(first), int(second)) == int(result) for first, sign, second, result in equations)


def test_dictation_says_the_pieces_twice() -> None:
    text = corpus.dictation(["ab", " cd", "{"], random.Random(0))
    half = text.split("\n")[0] if "\n" in text else text[4:].split(". Again:")[0]
    assert text.count(half) == 2
