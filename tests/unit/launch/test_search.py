"""Parameters of a sweep: how they are written, the grid they make, and what is suggested next."""

from __future__ import annotations

import math
import sys

import pytest

from tunesmith.config.names import NameTable
from tunesmith.errors import ConfigError, ModelError
from tunesmith.launch.search import Choice, Range, grid, parse_param, suggest

NAMES = NameTable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-4,2e-4", Choice("learning_rate", ("1e-4", "2e-4"))),
        ("training.lr_scheduler_type=linear", Choice("training.lr_scheduler_type", ("linear",))),
        ("target_modules=[q_proj,v_proj],all-linear", Choice("target_modules", ("[q_proj,v_proj]", "all-linear"))),
        ("train_data=../a.jsonl,../b.jsonl", Choice("train_data", ("../a.jsonl", "../b.jsonl"))),
        ("learning-rate=1e-5..1e-3:log", Range("learning_rate", 1e-5, 1e-3, log=True, whole=False)),
        ("lora_dropout=0..0.5", Range("lora_dropout", 0.0, 0.5, log=False, whole=False)),
        ("lora_r=4..64", Range("lora_r", 4, 64, log=False, whole=True)),
    ],
)
def test_how_a_parameter_is_written(text, expected):
    assert parse_param(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("learning_rat=1,2", "did you mean 'learning_rate'"),
        ("learning_rate", "has no values"),
        ("learning_rate=1e-4,,2e-4", "empty value"),
        ("learning_rate=1e-4,1e-4", "one twice"),
        ("optim=1..2", "optim is no number"),
        ("learning_rate=1e-3..1e-5", "is no range"),
        ("learning_rate=0..1:log", "is no range"),
        ("output_dir=a,b", "the sweep itself decides"),
    ],
)
def test_what_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_param(text, NAMES)


def test_the_grid_has_every_combination_once_in_order():
    space = [Choice("a", ("1", "2")), Choice("b", ("x", "y", "z"))]
    assert [tuple(settings.values()) for settings in grid(space)] == [
        ("1", "x"), ("1", "y"), ("1", "z"), ("2", "x"), ("2", "y"), ("2", "z"),
    ]  # fmt: skip


def test_the_ends_stand_for_a_range():
    space = [Range("lora_r", 4, 64, log=False, whole=True), Range("learning_rate", 1e-5, 1e-3, log=True, whole=False)]
    assert [settings["lora_r"] for settings in grid(space)] == ["4", "4", "64", "64"]
    assert [settings["learning_rate"] for settings in grid(space)] == ["1e-05", "0.001"] * 2


SPACE = [
    Range("learning_rate", 1e-5, 1e-1, log=True, whole=False),
    Range("lora_r", 4, 64, log=False, whole=True),
    Choice("optim", ("adamw_torch", "sgd")),
]


def search(seed: int, number: int, mode: str = "min") -> list[dict[str, str]]:
    """A search for learning rate 1e-3, whatever else."""
    results: list[tuple[dict[str, str], float]] = []
    for trial in range(1, number + 1):
        settings = suggest(SPACE, results, trial, seed=seed, mode=mode)
        distance = abs(math.log10(float(settings["learning_rate"])) + 3)
        results.append((settings, distance if mode == "min" else -distance))
    return [settings for settings, _ in results]


def test_suggestions_follow_from_the_seed_and_are_not_repeated():
    first = search(1, 8)
    assert first == search(1, 8)
    assert first != search(2, 8)
    assert len({tuple(settings.items()) for settings in first}) == 8
    for settings in first:
        assert 1e-5 <= float(settings["learning_rate"]) <= 1e-1
        assert int(settings["lora_r"]) in range(4, 65)
        assert settings["optim"] in ("adamw_torch", "sgd")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_suggestions_learn_from_results(mode):
    rates = [math.log10(float(settings["learning_rate"])) for settings in search(3, 40, mode)]
    early, late = rates[:10], rates[-10:]
    assert sum(abs(rate + 3) for rate in late) < sum(abs(rate + 3) for rate in early) / 2


def test_what_is_under_way_is_avoided() -> None:
    """Several processes ask before any of them has a result; they are not sent to one place."""
    space = SPACE[:1]
    exponents = [-5 + number / 5 for number in range(20)]
    results = [({"learning_rate": f"{10**exponent:.4g}"}, abs(exponent + 3)) for exponent in exponents]

    def near_the_best(under_way: list[dict[str, str]]) -> int:
        rates = [
            float(suggest(space, results, number, seed=0, mode="min", under_way=under_way)["learning_rate"])
            for number in range(21, 41)
        ]
        return sum(abs(math.log10(rate) + 3) < 0.25 for rate in rates)

    busy = [{"learning_rate": "1e-3"}] * 5
    assert near_the_best(busy) < near_the_best([]) / 2


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModelError, match=r"pip install 'tunesmith\[sweep\]'"):
        suggest(SPACE, [], 1, seed=0, mode="min")
