"""A metric that no evaluation will give is refused before any weights are loaded, by the names that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from, story_rows, write_rows
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import ALONE
from tunesmith.errors import ConfigError, DataError
from tunesmith.model.tokenizer import load_tokenizer
from tunesmith.train.arguments import greater_is_better
from tunesmith.train.evaluator import make_evaluator
from tunesmith.train.prepare import prepare


def settings(folder: Path, model: Path, **more: Any) -> Resolved:
    return resolved_from(
        model_name_or_path=str(model),
        train_data=write_rows(folder / "train.jsonl", story_rows(4)),
        eval_data=write_rows(folder / "eval.jsonl", story_rows(3, seed=9)),
        output_dir=str(folder / "run"),
        max_length=256,
        **{"generate": True, "task": "exact"} | more,
    )


def judge(resolved: Resolved) -> Any:
    tokenizer = load_tokenizer(resolved.config.model)
    return make_evaluator(resolved, prepare(resolved, tokenizer), ALONE)


def test_names_are_those_that_the_task_gives(tmp_path: Path, stories_model: Path) -> None:
    made = judge(settings(tmp_path, stories_model, metric_for_best_model="exact_match"))
    assert made.names == ["exact_match", "parse_failure_rate", "stopped_share", "mean_new_tokens"]


def test_an_unknown_metric_is_refused_with_the_known_ones(tmp_path: Path, stories_model: Path) -> None:
    with pytest.raises(ConfigError, match="no evaluation gives eval_macro_f1") as caught:
        judge(settings(tmp_path, stories_model, metric_for_best_model="macro_f1"))
    assert caught.value.where == "command line"
    for name in ("eval_loss", "eval_token_accuracy", "eval_exact_match"):
        assert name in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_rows_without_a_reference_are_named_before_training(tmp_path: Path, stories_model: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.jsonl:1"):
        judge(settings(tmp_path, stories_model, task="nli"))


@pytest.mark.parametrize(
    ("metric", "greater"), [("loss", False), ("parse_failure_rate", False), ("token_accuracy", True), ("f1", True)]
)
def test_the_better_direction_follows_the_name(tmp_path: Path, stories_model: Path, metric: str, greater: bool) -> None:
    assert greater_is_better(settings(tmp_path, stories_model, metric_for_best_model=metric)) is greater
