"""The word problems: right answers, separate numbers and words on the held-out side."""

from __future__ import annotations

import re

import pytest

from tunesmith.errors import DataError
from tunesmith.synthetic import reasoning
from tunesmith.synthetic import vocabulary as v

TRAIN, HELDOUT = reasoning.make_reasoning(1500, 150, seed=0)
EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")


def test_every_step_is_true_and_the_last_result_is_the_answer() -> None:
    for row in TRAIN + HELDOUT:
        equations = EQUATION.findall(row["response"])
        assert equations
        for first, sign, second, result in equations:
            assert int(result) == (int(first) + int(second) if sign == "+" else int(first) - int(second))
        assert row["response"].endswith(f"#### {equations[-1][3]}")


def test_every_number_of_the_problem_is_an_operand() -> None:
    for row in TRAIN + HELDOUT:
        given = sorted(map(int, re.findall(r"\d+", row["prompt"])))
        assert given == sorted(abs(operand) for operand in row["operands"])


def test_held_out_numbers_and_words_never_occur_in_training() -> None:
    for row in TRAIN:
        assert not v.held_out_pairs([row["prompt"]])
        assert not reasoning.operands_held_out(row["kind"], tuple(row["operands"]))
    for row in HELDOUT:
        assert v.held_out_pairs([row["prompt"]])
        assert reasoning.operands_held_out(row["kind"], tuple(row["operands"]))


def test_all_kinds_occur_and_answers_are_spread() -> None:
    assert {row["kind"] for row in HELDOUT} == set(reasoning.PROBLEMS)
    answers = [row["response"].rsplit(" ", 1)[1] for row in HELDOUT]
    assert max(answers.count(answer) for answer in set(answers)) / len(answers) < 0.2


def test_the_same_seed_gives_the_same_rows() -> None:
    assert reasoning.make_reasoning(60, 20, seed=3) == reasoning.make_reasoning(60, 20, seed=3)
    assert reasoning.make_reasoning(60, 20, seed=3) != reasoning.make_reasoning(60, 20, seed=4)


def test_asking_for_more_rows_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning, "_MAX_DRAWS_PER_ROW", 2)
    with pytest.raises(DataError, match="ask for fewer"):
        reasoning.make_reasoning(10, 50, seed=0)
