"""Numbers and expressions: equal ones have one spelling, others keep theirs."""

from __future__ import annotations

import pytest

from tunesmith.evaluate.canonical import canonical_expression, canonical_number


def test_equal_numbers_have_one_spelling() -> None:
    same = [
        "1080.50",
        "1,080.5",
        "$1080.5",
        "2161/2",
        "1080.5%",
        "\\$1{,}080.50",
        "1.0805e3",
        "\\frac{2161}{2}",
        "1080.5.",
    ]
    assert {canonical_number(text) for text in same} == {"2161/2"}
    assert canonical_number("2, 3") is None
    assert canonical_number("1e999999999") is None


@pytest.mark.parametrize(
    "spellings",
    [
        [r"\frac{x}{2}", r"\dfrac{x}{2}", r"\tfrac x2", r" \frac{ x }{ 2 } .", r"$\frac{x}{2}$"],
        [r"(1,2)", r"\left( 1, 2 \right)", r"(1,\! 2)"],
        [r"3\sqrt{2}", r"3\sqrt2", r"3 \sqrt{2}"],
        [r"\text{east}", "East", "east."],
        ["2x+1", "y = 2x + 1", "2x +1"],
        [r"90^\circ", "90", r"90^{\circ}", "90\u00b0"],
    ],
)
def test_expressions_that_look_different_are_equal(spellings: list[str]) -> None:
    assert len({canonical_expression(text) for text in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("2x", "x+x"), ("new york", "newyork"), ("(1,2)", "(2,1)"), ("x==1", "1"), ("-x", "x")]
)
def test_other_expressions_stay_different(one: str, other: str) -> None:
    assert canonical_expression(one) != canonical_expression(other)
