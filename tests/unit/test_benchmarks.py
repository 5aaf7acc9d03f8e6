"""The comparison of training steps at a tiny shape: every side trains the same, and the tables are written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import record, training, training_side

from tunesmith.model.source import locate


def test_all_sides_train_the_same_and_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = locate("nano-mistral", None)
    job = training.prepare(tmp_path, "synthetic", 2, tokenizer, "tiny", group_by_prefix=True)
    assert len(job["batches"]) == 2
    found: dict[str, list[dict[str, Any]]] = {}
    for side in ("loop unpadded", "loop padded", "tunesmith", "Trainer", "TRL", "TRL, labelled positions only"):
        given, measured = tmp_path / "job.json", tmp_path / "result.json"
        given.write_text(json.dumps(job | {"side": side}))
        monkeypatch.setattr(sys, "argv", ["side", str(given), str(measured)])
        training_side.main()
        found[side] = [json.loads(measured.read_text())]
        assert found[side][0]["peak"] > 2**20
        assert len(found[side][0]["seconds"]) == 1
    training.check_losses(found)
    result = {
        "work": "synthetic", "steps": 2, "rounds": 1, "scale": "tiny", "tokens_a_step": 10.0, "batch_size": 4,
        "sides": {side: training.summary(turns) for side, turns in found.items()},
    }  # fmt: skip
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{record.BEGIN}\nold\n{record.END}\nafter\n")
    for name, path in {"RESULTS": "RESULTS.md", "KEPT": "results.json", "README": "README.md"}.items():
        monkeypatch.setattr(record, name, tmp_path / path)
    record.publish("Another comparison", [["| other |"]], "Somehow.", {})
    record.publish("Training steps: synthetic", [training.table(result)], training.how(result), result)
    assert "| other |" in (tmp_path / "RESULTS.md").read_text()
    assert "| loop unpadded |" in (tmp_path / "RESULTS.md").read_text()
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| tunesmith |" in text
    assert "old" not in text


def test_turns_that_have_ended_are_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def turn(job: dict[str, Any]) -> dict[str, Any]:
        taken.append(job["side"])
        return {"losses": [1.0], "seconds": [1.0], "first_cpu": 1.0, "whole_cpu": 1.0, "peak": 1}

    monkeypatch.setattr(training, "run", turn)
    for _ in range(2):
        training.compare(
            "synthetic", ["one", "two"], rounds=1, steps=1, tokenizer=locate("nano-mistral", None), scale="tiny",
            kept=tmp_path / "turns",
        )  # fmt: skip
    assert taken == ["one", "two"]


def test_sides_that_train_otherwise_are_not_compared() -> None:
    with pytest.raises(SystemExit, match="two has other losses"):
        training.check_losses({"one": [{"losses": [1.0, 2.0]}], "two": [{"losses": [1.0, 2.001]}]})
