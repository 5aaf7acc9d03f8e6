"""The words of the embedded world and the line between training and held-out combinations."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import pytest

from tunesmith.synthetic import vocabulary as v


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("dog", "dogs"), ("fox", "foxes"), ("box", "boxes"), ("brush", "brushes"), ("man", "men"), ("person", "people")],
)
def test_plural(noun: str, expected: str) -> None:
    assert v.plural(noun) == expected


def test_every_class_member_knows_its_class() -> None:
    checked = [(noun, kind) for kind, nouns in v.KINDS.items() for noun in nouns]
    assert len(checked) >= 40
    assert all(v.kind_of(noun) == kind for noun, kind in checked)
    with pytest.raises(KeyError):
        v.kind_of("lamp")


def test_content_words_see_through_inflection_case_and_order() -> None:
    assert v.content_words("The dogs chase Anna.") == v.content_words("anna is chased by a dog")
    assert v.content_words("an animal in the garden") == []


def test_held_out_pairs_ignore_order_and_leave_enough_for_training() -> None:
    nouns = v.ANIMALS + v.PEOPLE + v.THINGS
    pairs = list(combinations(nouns, 2))
    held = [pair for pair in pairs if v.is_held_out(*pair)]
    assert 0.04 < len(held) / len(pairs) < 0.14
    first, second = held[0]
    assert v.held_out_pairs([f"the {first} sees", f"a {second}"]) == v.held_out_pairs([f"{v.plural(second)} {first}"])
    assert (first, second) in v.held_out_pairs([f"{first} {second}"]) or (second, first) in v.held_out_pairs(
        [f"{first} {second}"]
    )


def test_two_opposite_qualities_are_no_combination() -> None:
    for first, second, _ in v.OPPOSITES:
        assert v.held_out_pairs([f"{first} {second}"]) == []


def test_the_world_imports_nothing_heavy() -> None:
    code = (
        "import sys; import tunesmith.synthetic.nli, tunesmith.synthetic.rag, tunesmith.synthetic.reasoning, "
        "tunesmith.synthetic.corpus; print(sorted({'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
