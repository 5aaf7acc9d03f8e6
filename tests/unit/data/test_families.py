from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.families import FamilySampler, families, family_order
from tunesmith.data.masking import IGNORE_INDEX, Example


def example(prompt: list[int]) -> Example:
    ids = [*prompt, 1, 2]
    return Example(ids, [IGNORE_INDEX] * len(prompt) + [1, 2], "t:1", 1, 1, len(ids))


def premise(number: int) -> list[int]:
    generator = random.Random(number)
    return [generator.randrange(10, 90) for _ in range(12)]


def rows(system: list[int], premises: int, each: int) -> list[Example]:
    return [
        example([*system, *premise(number), 5, hypothesis, 6])
        for hypothesis in range(each)
        for number in range(premises)
    ]


@pytest.mark.parametrize("system", [[], [7] * 50])
def test_rows_of_one_premise_are_a_family_whatever_all_rows_have_in_common(system: list[int]) -> None:
    numbers = families(rows(system, 20, 3), batch_size=8)
    assert [numbers[index] for index in range(20)] == [numbers[index] for index in range(20, 40)] == numbers[40:]
    assert len(set(numbers)) == 20


def test_a_row_that_begins_otherwise_makes_no_family_of_all_others() -> None:
    numbers = families([*rows([7] * 50, 20, 3), example([8] * 9)], batch_size=8)
    assert len(set(numbers)) == 21


def test_rows_with_a_system_prompt_alone_keep_a_random_order() -> None:
    generator = random.Random(1)
    made = [example([*[7] * 50, *[generator.randrange(10, 90) for _ in range(9)]]) for _ in range(30)]
    order = family_order(families(made, batch_size=8), 8, seed=1)
    assert order != family_order(families(made, batch_size=8), 8, seed=2)
    assert sorted(order) == list(range(30)) != order


def test_more_relatives_than_a_batch_holds_stay_neighbours() -> None:
    made = rows([], 2, 20)
    order = family_order(families(made, batch_size=8), 8, seed=3)
    assert sorted(order) == list(range(40))
    mixed = sum(len({row % 2 for row in order[at : at + 8]}) > 1 for at in range(0, 40, 8))
    assert mixed <= 2


@settings(max_examples=60)
@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_every_row_comes_once(numbers: list[int], size: int, seed: int) -> None:
    assert sorted(family_order(numbers, size, seed)) == list(range(len(numbers)))


def test_families_of_three_stay_together_as_far_as_batches_allow() -> None:
    numbers = [index // 3 for index in range(300)] + list(range(100, 200))
    order = family_order(numbers, 8, seed=1)
    batch_of = {row: place // 8 for place, row in enumerate(order)}
    whole = sum(len({batch_of[row] for row in range(at, at + 3)}) == 1 for at in range(0, 300, 3))
    assert whole >= 95


def test_each_epoch_has_an_order_of_its_own_that_the_seed_decides() -> None:
    sampler = FamilySampler([index // 2 for index in range(40)], 4, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert len(sampler) == 40
    assert list(FamilySampler(sampler.numbers, 4, seed=4)) != orders[0]
