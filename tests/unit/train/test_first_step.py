"""The time to the first step, with its parts: in the record, in the result, and nowhere counted twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from helpers import resolved_from, run_training, story_rows
from tunesmith.cli.train import process_began
from tunesmith.train.first_step import FIRST_STEP, FirstStep
from tunesmith.train.result import read_result


def test_a_run_records_what_it_did_before_its_first_step(stories_model: Path, tmp_path: Path) -> None:
    before = time.monotonic()
    result = run_training(tmp_path, stories_model, story_rows(6), max_steps=2, eval_rows=story_rows(2, seed=3),
                          eval_on_start=True)  # fmt: skip
    figures = result.first_step
    assert list(figures["parts"]) == ["libraries", "checks", "data", "model", "evaluation", "first_step"]
    assert 0 < figures["parts"][FIRST_STEP] < figures["seconds"] < time.monotonic() - before
    assert sum(figures["parts"].values()) == pytest.approx(figures["seconds"], abs=0.05)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["first_step"] == figures
    settings = resolved_from(model_name_or_path="x", train_data="x", output_dir=str(tmp_path / "run"))
    assert read_result(settings).first_step == figures


def test_parts_of_one_name_are_added_up() -> None:
    clock = FirstStep(None, time.monotonic() - 100)
    for name in ("tokenizer", "plan", "data"):
        clock.made(name)
    assert clock.figures() is None  # no step has ended
    clock.on_step_end(None, None, None)
    figures = clock.figures()
    assert figures is not None
    assert list(figures["parts"]) == ["libraries", "data", "checks", "first_step"]
    assert 100 <= figures["parts"]["libraries"] < 110
    clock.on_step_end(None, None, None)
    assert clock.figures() == figures  # later steps are not looked at


def test_a_command_counts_from_the_start_of_its_process() -> None:
    assert time.monotonic() - process_began() < 1  # of this one, which has done other things before
