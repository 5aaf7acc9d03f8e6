"""What a first configuration proposes by the number of rows, their lengths and the model's size."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.guess import Shape
from tunesmith.data.row import Row
from tunesmith.train.proposal import LONGEST, Measured, held_out_rows, propose

PAIRS = Shape("question_answer", {"question": "text", "answer": "label"}, "'text' is asked", "label")


def proposed(
    number: int = 60, size: int = 2_000_000, lengths: list[int] | None = None, positions: int | None = 1024, **more: Any
) -> dict[str, Any]:
    rows = [Row({"text": f"row {index}", "label": "ab"[index % 2]}, "f.csv", index) for index in range(number)]
    found = lengths or [20] * number
    measured = Measured(
        found, [3] * len(found), more.pop("turn_order", "error"), more.pop("repeated", False), more.pop("twice", 0)
    )
    items = propose(rows, more.pop("shape", PAIRS), measured, data="f.csv", model="m", size=size, positions=positions)
    assert len({item.name for item in items}) == len(items)
    order = [item.section for item in items]
    assert order == sorted(order, key=["model", "dataset", "training", "evaluation"].index)
    return {item.name: item.value for item in items}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2_000_000, {"epochs": 20, "learning_rate": 2e-3, "per_device_train_batch_size": 8}),
        (500_000_000, {"epochs": 10, "learning_rate": 2e-4, "per_device_train_batch_size": 8}),
        (1_500_000_000, {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 2e-4}),
        (8_000_000_000, {"load_in_4bit": True, "gradient_checkpointing": True, "learning_rate": 1e-4}),
    ],
)
def test_the_size_of_the_model_decides(size: int, expected: dict[str, Any]) -> None:
    found = proposed(size=size)
    assert {name: found[name] for name in expected} == expected
    assert ("load_in_4bit" in found) == (size >= 6_000_000_000)
    assert ("gradient_checkpointing" in found) == (size >= 1_000_000_000)


@pytest.mark.parametrize(
    ("number", "epochs", "batch"), [(40, 30, 8), (60, 20, 8), (1000, 3, 8), (5000, 3, 16), (30_000, 1, 16)]
)
def test_the_number_of_rows_decides(number: int, epochs: int, batch: int) -> None:
    found = proposed(number)
    assert (found["epochs"], found["per_device_train_batch_size"]) == (epochs, batch)


@pytest.mark.parametrize(("number", "held"), [(9, 0), (10, 2), (60, 12), (1000, 200), (3000, 300), (90_000, 500)])
def test_what_is_held_out(number: int, held: int) -> None:
    assert held_out_rows(number) == held
    found = proposed(number, size=500_000_000)
    assert ("dev_split" in found) == ("eval_steps" in found) == ("labels" in found) == bool(held)
    if held:
        assert max(1, round(number * found["dev_split"])) in range(held, held + 11)


@pytest.mark.parametrize(
    ("lengths", "positions", "length", "too_long"),
    [
        ([20] * 60, 1024, 64, None),
        ([20] * 59 + [101], 1024, 128, None),
        ([20] * 59 + [1010], 1000, 1000, "drop"),
        ([20] * 40 + [1010] * 20, 1000, 1000, "truncate_prompt"),
        ([20] * 59 + [100_000], None, LONGEST, "drop"),
        ([20] * 59 + [995], 1000, 1000, None),
    ],
)
def test_lengths(lengths: list[int], positions: int | None, length: int, too_long: str | None) -> None:
    found = proposed(lengths=lengths, positions=positions)
    assert (found["max_seq_length"], found.get("too_long")) == (length, too_long)


def test_rows_that_are_mostly_repeated_are_trained_once() -> None:
    """A configuration that `train` refuses is no proposal."""
    found = proposed(100, repeated=True, twice=70)
    assert (found["duplicates"], found["max_duplicates"], found["max_dropped"]) == ("drop", 0.8, 0.8)
    assert found["dev_split"] == 0.2
    assert "duplicates" not in proposed(100, repeated=True, twice=40)
    assert "dev_split" not in proposed(40, repeated=True, twice=32)


def test_what_is_unusual_is_said() -> None:
    assert proposed(repeated=True)["dev_group_by"] == "prompt"
    assert "dev_stratify_by" not in proposed(repeated=True)
    assert proposed()["dev_stratify_by"] == "label"
    assert proposed(turn_order="merge")["turn_order"] == "merge"
    assert proposed(lengths=[20] * 58)["empty_completion"] == "drop"
    whole = proposed(shape=Shape("text", {}, "a text", loss_on="all"))
    assert whole["loss_on"] == "all"
    assert "max_new_tokens" not in whole
