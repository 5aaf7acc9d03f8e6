"""What ``tunesmith train`` says after ``done``: commands that can be pasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from
from tunesmith.cli.main import guarded
from tunesmith.cli.train import next_commands, show
from tunesmith.errors import NumericsError
from tunesmith.train.result import TrainResult

CHAT = "tunesmith chat 'my run'"
REPORT = "tunesmith report 'my run'"
JUDGE = "tunesmith evaluate 'my run' --baseline"
MERGE = "tunesmith merge 'my run' 'my run-merged'"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dev_split": 0.2}, [JUDGE, MERGE, CHAT, REPORT]),
        ({}, [MERGE, CHAT, REPORT]),
        ({"dev_split": 0.2, "use_lora": False}, [JUDGE, CHAT, REPORT]),
        ({"dev_split": 0.2, "task": "none"}, [MERGE, CHAT, REPORT]),
        ({"dev_split": 0.2, "format": "text", "loss_on": "all"}, [MERGE, CHAT, REPORT]),
        ({"save_merged_model": True}, [CHAT, REPORT]),
    ],
)
def test_what_makes_sense_next(settings: dict[str, Any], expected: list[str]) -> None:
    resolved = resolved_from(model_name_or_path="nano-mistral", train_data="x.jsonl", **settings)
    result = TrainResult(Path("my run"), Path("my run"), 5, 1.0, {})
    assert next_commands(result, resolved) == expected


def test_it_is_said_beside_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    resolved = resolved_from(model_name_or_path="nano-mistral", train_data="x.jsonl")
    result = TrainResult(Path("run"), Path("run"), 5, 1.0, {})
    assert show(result, resolved, as_json=False) == 0
    printed = capsys.readouterr()
    assert printed.out == "run\n"
    assert "\nnext\n  tunesmith merge run run-merged\n  tunesmith chat run\n  tunesmith report run\n" in printed.err
    stopped = TrainResult(Path("run"), Path("run"), 5, 1.0, {}, stopped="at step 5; go on with X")
    assert show(stopped, resolved, as_json=False) == 0
    assert "next" not in capsys.readouterr().err


def test_a_failure_is_followed_by_the_way_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        error = NumericsError("the loss is not finite")
        error.add_note("once that is mended, go on with: tunesmith train x.yaml")
        raise error

    assert guarded(fail) == 5
    assert capsys.readouterr().err == (
        "error: the loss is not finite\nonce that is mended, go on with: tunesmith train x.yaml\n"
    )


def test_the_way_to_the_first_step_is_shown_with_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"seconds": 9.81, "parts": {"libraries": 6.02, "data": 1.2, "first_step": 2.59}}
    result = TrainResult(Path("run"), Path("run"), 5, 1.0, {}, first_step=figures)
    assert show(result, resolved_from(model_name_or_path="nano-mistral", train_data="x.jsonl"), as_json=False) == 0
    assert "\n          first step after 9.8 s: libraries 6.0, data 1.2, first step 2.6\n" in capsys.readouterr().err
