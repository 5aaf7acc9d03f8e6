"""Kills, damaged checkpoints and what a run goes on from, numbered as in the list of trust."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fault_helpers import EVAL, SAVES, Attempt, Killed, content, kill_at, training, weights
from helpers import logged, write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.report import record
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import MANIFEST

KINDS: dict[str, dict[str, Any]] = {
    "lora": {}, "full": {"use_lora": False}, "packed": {"batching": "packed"}, "qlora": {"load_in_4bit": True},
    "streaming": {"streaming": True, "shuffle_seed": 1},
}  # fmt: skip
POINTS = (
    ("transformers.Trainer", "_save_optimizer_and_scheduler", 2),
    ("transformers.Trainer", "_save_rng_state", 2),
    ("tunesmith.export.inference", "write", 2),
    ("tunesmith.train.trainer.Trainer", "write_progress", 2),
    ("tunesmith.train.checkpoint", "commit", 1),
    ("tunesmith.train.checkpoint", "commit", 2),
    ("tunesmith.train.checkpoint", "rotate", 2),
    ("tunesmith.train.checkpoint", "remove", 1),
    ("tunesmith.train.checkpoint.shutil", "rmtree", 1),
    ("tunesmith.train.trainer.Trainer", "finish_weights", 1),
    ("tunesmith.train.run", "save_models", 1),
    ("tunesmith.train.run", "draw", 1),
    ("tunesmith.train.run", "write_cards", 1),
    ("tunesmith.train.run", "close_folder", 1),
    ("tunesmith.report.belongings", "written", 1),
    ("tunesmith.report.belongings", "drop_replaced", 4),
)
"""Place, function, and the call of it at which the kill comes: in a save, between saves, and behind the last step."""
CASES = [
    (kind, *point)
    for number, point in enumerate(POINTS)
    for kind in (KINDS if "KILL_EVERYWHERE" in os.environ else list(KINDS)[number % len(KINDS)].split())
]
"""Each point with one kind of run, in turn; KILL_EVERYWHERE=1 takes each with all of them."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Callable[[str], Path]:
    """The run folder of a run of a kind that nothing disturbed."""

    @cache
    def folder(kind: str) -> Path:
        place = tmp_path_factory.mktemp(kind)
        assert main(training(place, whole / "model", **SAVES, save_total_limit=1, **KINDS[kind])) == 0
        return place / "run"

    return folder


@pytest.mark.parametrize(("kind", "place", "name", "call"), CASES)
def test_F2_a_kill_at_each_point_of_a_save_changes_nothing(
    attempt: Attempt, undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
    place: str, name: str, call: int,
) -> None:  # fmt: skip
    settings, whole, run = SAVES | {"save_total_limit": 1} | KINDS[kind], undisturbed(kind), tmp_path / "run"
    with monkeypatch.context() as killing:
        kill_at(killing, pkgutil.resolve_name(place), name, call=call)
        with pytest.raises(Killed):
            attempt(**settings)
    code, said = attempt(resume_from_checkpoint="auto", **settings)
    assert code == 0, said
    assert content(run).keys() == content(whole).keys()
    assert json.loads((run / "run.json").read_text())["files"] == sorted(content(whole))
    assert weights(run) == weights(whole)
    figures = ("step", "loss", "grad_norm", "learning_rate", "epoch")
    assert logged(run, *figures) == logged(whole, *figures)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "progress.json"):
        assert (run / "checkpoint-3" / state).read_bytes() == (whole / "checkpoint-3" / state).read_bytes()
    assert (run / "ledger.json").read_bytes() == (whole / "ledger.json").read_bytes().replace(
        str(whole.parent).encode(), str(tmp_path).encode()
    )


def test_F3_F4_F5_each_file_of_the_newest_checkpoint(attempt: Attempt, tmp_path: Path) -> None:
    """Cut short, emptied, removed or with one bit flipped: the one before is taken, and the file is named."""
    assert attempt(**SAVES)[0] == 0
    run = tmp_path / "run"
    newest = run / "checkpoint-3"
    for path in sorted(newest.rglob("*")):
        raw = path.read_bytes()
        damages = [raw[:-1], b"", None, raw[:-1] + bytes([raw[-1] ^ 1])]
        for damage in damages:
            path.unlink() if damage is None else path.write_bytes(damage)
            notices.clear()
            found = checkpoint.find(run, "latest")
            assert found is not None
            if path.name == MANIFEST and damage == raw[:-1]:
                continue  # the last byte is a line end
            assert found.step == 2, (path, damage)
            assert path.name in notices.collected()[-1] or MANIFEST in notices.collected()[-1]
            path.write_bytes(raw)
    before = content(run)
    for path in run.glob("checkpoint-*/optimizer.pt"):
        path.write_bytes(b"")
    for asked in ("latest", str(newest)):
        code, said = attempt(**SAVES | {"max_steps": 4, "resume_from_checkpoint": asked})
        assert code == 6
        assert "optimizer.pt has changed" in said
    assert content(run).keys() == before.keys()


def test_F6_nothing_to_resume(attempt: Attempt, tmp_path: Path) -> None:
    code, said = attempt(resume_from_checkpoint=tmp_path / "none" / "checkpoint-3")
    assert code == 6
    assert "no such folder" in said
    code, said = attempt(resume="auto", max_steps=1)
    assert code == 0
    assert "starts from the beginning" in said


def test_F22_steps_decide_and_clocks_do_not(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoint.commit(tmp_path / f"checkpoint-{step}", checkpoint.Batches(1, 1, 1))
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))
    found = checkpoint.find(tmp_path, "latest")
    assert found is not None
    assert found.step == 11
    checkpoint.rotate(tmp_path, 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]


def test_F23_best_and_last_survive_a_kill(attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SAVES | {
        "eval_data": write_rows(tmp_path / "rows" / "eval.jsonl", EVAL), "eval_steps": 1, "save_total_limit": 1,
        "load_best_model_at_end": True, "learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    assert attempt(output_dir=tmp_path / "whole", **settings)[0] == 0
    with monkeypatch.context() as killing:
        kill_at(killing, checkpoint, "commit", call=3)
        with pytest.raises(Killed):
            attempt(**settings)
    shutil.move(tmp_path / "run", tmp_path / "moved")  # the best one is found in the folder that was moved
    code, said = attempt(output_dir=tmp_path / "moved", resume="auto", **settings)
    assert code == 0, said
    assert weights(tmp_path / "moved") == weights(tmp_path / "whole")
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("moved", "whole")]
    assert records[0]["best"] == records[1]["best"]
    assert (tmp_path / "moved" / records[0]["best_checkpoint"] / MANIFEST).is_file()


@pytest.mark.parametrize("stop", ["at its last step", "early", "without a checkpoint"])
def test_a_finished_run_that_is_resumed_does_nothing(attempt: Attempt, tmp_path: Path, stop: str) -> None:
    settings: dict[str, Any] = SAVES | {"lr_scheduler_type": "constant", "resume": "auto"}
    if stop == "early":
        settings |= {"early_stopping_patience": 1, "early_stopping_threshold": 10, "eval_steps": 1, "max_steps": 9}
        settings |= {"eval_data": write_rows(tmp_path / "rows" / "eval.jsonl", EVAL)}
    elif stop.startswith("without"):
        settings |= {"save_strategy": "no"}
    assert attempt(**settings)[0] == 0
    run = tmp_path / "run"
    before = content(run)
    for _ in range(2):
        code, said = attempt(**settings)
        assert code == 0
        assert "complete" in said
        assert content(run) == before
    if stop.startswith("without"):
        return
    final = weights(run)
    record.close(run, "running", {})  # killed between the last checkpoint and the end
    (run / "adapter_model.safetensors").unlink()
    code, said = attempt(**settings)
    assert code == 0, said
    assert weights(run) == final
    assert json.loads((run / "run.json").read_text())["result"]["steps"] == (2 if stop == "early" else 3)


def test_going_back_leaves_the_old_branch_aside(attempt: Attempt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = SAVES | {"max_steps": 4, "save_total_limit": 3}
    assert attempt(**settings)[0] == 0
    final, metrics = weights(run), (run / "metrics.jsonl").read_text()
    code, said = attempt(resume_from_checkpoint=run / "checkpoint-2", **settings)
    assert code == 0
    assert "abandoned-1" in said
    assert sorted(path.name for path in run.glob("abandoned-1/*")) == ["checkpoint-3", "checkpoint-4"]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert weights(run) == final
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [step for (step,) in logged(run, "step")]


def test_another_runs_checkpoint_replaces_nothing_without_a_word(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt(**SAVES)[0] == 0
    assert attempt(output_dir=tmp_path / "other", **SAVES)[0] == 0
    before = content(tmp_path / "other")
    settings = SAVES | {"output_dir": tmp_path / "other", "resume_from_checkpoint": tmp_path / "run" / "checkpoint-2"}
    code, said = attempt(**settings)
    assert code == 2
    assert "holds a run already" in said
    assert content(tmp_path / "other") == before
    assert attempt(overwrite_output_dir=True, **settings)[0] == 0
    assert sorted(path.name for path in (tmp_path / "other").glob("checkpoint-*")) == ["checkpoint-3"]
    assert weights(tmp_path / "other") == weights(tmp_path / "run")


def test_records_that_a_loss_of_power_has_torn(attempt: Attempt, tmp_path: Path) -> None:
    settings = SAVES | {"max_steps": 2}
    run = tmp_path / "run"
    assert attempt(**SAVES)[0] == 0
    whole = logged(run, "step", "loss")
    shutil.rmtree(run / "checkpoint-3")
    with (run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 4, "lo\0\0\0\0\0\0')
    (run / "run.json").write_bytes(b"\0" * 300)
    code, said = attempt(**settings | {"max_steps": 3, "resume": "auto"})
    assert code == 0, said
    assert "metrics.jsonl was torn" in said
    assert "run.json cannot be read" in said
    assert logged(run, "step", "loss") == whole
