"""Settings on a command line: every way to write them, and the type that each becomes."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.config.names import NameTable
from tunesmith.config.overrides import accepted_types, parse_overrides
from tunesmith.errors import ConfigError

NAMES = NameTable()


def parsed(*tokens: str) -> dict[str, Any]:
    settings = parse_overrides(tokens, NAMES)
    assert all(setting.origin == "command line" for setting in settings)
    return {setting.spelling.path: setting.value for setting in settings}


@pytest.mark.parametrize(
    "tokens",
    [
        ["--learning_rate", "1e-4"],
        ["--learning-rate", "1e-4"],
        ["--learning_rate=1e-4"],
        ["training.learning_rate=1e-4"],
        ["--training.learning_rate", "1e-4"],
        ["--lr", "0.0001"],
        ["learning_rate=.0001"],
    ],
)
def test_a_number_is_a_number_however_it_is_written(tokens: list[str]) -> None:
    values = parsed(*tokens)
    assert values == {"training.learning_rate": 1e-4}
    assert isinstance(values["training.learning_rate"], float)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (["--gradient_checkpointing"], True),
        (["--no_gradient_checkpointing"], False),
        (["--no-gradient-checkpointing"], False),
        (["--gradient_checkpointing", "False"], False),
        (["--gradient_checkpointing", "true"], True),
        (["--gradient_checkpointing=no"], False),
        (["training.gradient_checkpointing=0"], False),
    ],
)
def test_switches(tokens: list[str], value: bool) -> None:
    assert parsed(*tokens) == {"training.gradient_checkpointing": value}


def test_a_switch_takes_nothing_that_follows_it() -> None:
    assert parsed("--use_wandb", "--seed", "3") == {"tracking.use_wandb": True, "training.seed": 3}


def test_no_wandb_switches_wandb_off() -> None:
    assert parsed("--no_wandb") == {"tracking.use_wandb": False}


@pytest.mark.parametrize(
    "tokens",
    [
        ["--target_modules", "q_proj", "v_proj"],
        ["--target_modules", "q_proj,v_proj"],
        ["--target_modules", "[q_proj, v_proj]"],
        ["--target_modules", '["q_proj", "v_proj"]'],
        ["adapter.target_modules=[q_proj,v_proj]"],
    ],
)
def test_lists(tokens: list[str]) -> None:
    assert parsed(*tokens) == {"adapter.target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("after", [["training.seed=3"], ["seed=3"], ["--seed", "3"], ["--seed=3"]])
def test_a_list_ends_where_the_next_setting_begins(after: list[str]) -> None:
    values = parsed("--target_modules", "q_proj", "v_proj", *after)
    assert values == {"adapter.target_modules": ["q_proj", "v_proj"], "training.seed": 3}


@pytest.mark.parametrize(
    ("word", "value"),
    [*((word, True) for word in ("true", "TRUE", "Yes", "on", "1")), *((word, False) for word in ("No", "oFF", "0"))],
)
def test_every_word_for_yes_and_no(word: str, value: bool) -> None:
    for tokens in (["--gradient_checkpointing", word], [f"--gradient_checkpointing={word}"]):
        assert parsed(*tokens) == {"training.gradient_checkpointing": value}


@pytest.mark.parametrize("word", ["none", "None", "null", "NULL", "~", ""])
def test_every_word_for_nothing(word: str) -> None:
    assert parsed(f"early_stopping_patience={word}") == {"training.early_stopping_patience": None}
    assert parsed("--gradient_checkpointing", word, "--seed", "3") == {
        "training.gradient_checkpointing": None, "training.seed": 3,
    }  # fmt: skip


def test_a_switch_that_also_takes_text_takes_it_where_it_fits() -> None:
    assert parsed("--init_lora_weights", "pissa") == {"adapter.init_lora_weights": "pissa"}
    assert parsed("--init_lora_weights", "42") == {"adapter.init_lora_weights": "42"}
    assert parsed("--init_lora_weights") == {"adapter.init_lora_weights": True}
    assert parsed("--init_lora_weights", "--seed", "3") == {"adapter.init_lora_weights": True, "training.seed": 3}
    assert parsed("--init_lora_weights", "+seed=3") == {"adapter.init_lora_weights": True, "training.seed": 3}


def test_names_are_written_as_the_setting_knows_them() -> None:
    tokens = ["--no-gradient-checkpointing", "+learning-rate=1", "--weight-decay=0", "--max-steps", "5", "--no_wandb"]
    names = [setting.name for setting in parse_overrides(tokens, NAMES)]
    assert names == ["gradient_checkpointing", "learning_rate", "weight_decay", "max_steps", "wandb"]


def test_only_the_first_equals_sign_divides() -> None:
    assert parsed("output_dir=a=b") == parsed("--output_dir=a=b") == {"training.output_dir": "a=b"}


def test_a_list_ends_at_the_next_option_and_at_the_end() -> None:
    assert parsed("--target_modules", "a", "b", "--seed", "3") == {
        "adapter.target_modules": ["a", "b"], "training.seed": 3,
    }  # fmt: skip


def test_blanks_and_quotes_around_the_parts_of_a_list_are_not_theirs() -> None:
    for text in (" ['a#' , \"#b\" ] ", "a#,#b", " a# , #b, "):
        assert parsed("--target_modules", text) == {"adapter.target_modules": ["a#", "#b"]}


def test_text_of_another_type_is_kept_for_validation_to_refuse() -> None:
    """Nothing is bent until it fits: true is no number."""
    assert parsed("--seed", "abc") == {"training.seed": "abc"}
    assert parsed("--seed", "true")["training.seed"] is True
    assert parsed("--learning_rate=yes")["training.learning_rate"] is True


def test_the_types_of_a_setting() -> None:
    assert accepted_types(NAMES.find("lora_r", "test")) == {int}
    assert accepted_types(NAMES.find("layers_to_transform", "test")) == {int, list, type(None)}


def test_none_unsets_and_a_digit_text_stays_a_text() -> None:
    assert parsed("--early_stopping_patience", "none") == {"training.early_stopping_patience": None}
    assert parsed("--wandb_name", "42") == {"tracking.run_name": "42"}
    assert parsed("--output_dir", "true") == {"training.output_dir": "true"}


def test_a_negative_number_is_a_value() -> None:
    assert parsed("--max_steps", "-1") == {"training.max_steps": -1}


def test_the_later_of_two_wins() -> None:
    assert [setting.value for setting in parse_overrides(["--seed", "1", "--seed=2"], NAMES)] == [1, 2]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--seed"], "--seed needs a value"),
        (["--seed", "--no_wandb"], "--seed needs a value"),
        (["--no_seed"], "seed is not a switch"),
        (["--gradient_checkpointing", "y"], "do not know what to do with 'y'"),
        (["seed"], "do not know what to do with 'seed'"),
        (["--batch_sise", "3"], "unknown setting 'batch_sise'"),
        (["--no_wandbb"], "unknown setting 'no_wandbb'"),
        (["--no_gradient_checkpointing=true"], "unknown setting 'no_gradient_checkpointing'"),
        (["--no_gradient_checkpointing=false"], "unknown setting 'no_gradient_checkpointing'"),
        (["--no_gradient_checkpointing="], "unknown setting 'no_gradient_checkpointing'"),
    ],
)
def test_mistakes_are_named(tokens: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(tokens, NAMES)
    assert words in caught.value.line()
    assert caught.value.where == "command line"
