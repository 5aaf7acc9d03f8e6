"""Trust rows F16, F21, F30 and D26 of runs, and what else happens around the steps: processes that die or stand still,
files that change, trackers of a run that is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import logged, run_training, story_rows, tensors, write_rows
from tunesmith.data.collate import Collator
from tunesmith.errors import ConfigError, DataError, NumericsError, StorageError
from tunesmith.report import belongings, record
from tunesmith.report.belongings import is_finished
from tunesmith.train import checkpoint
from tunesmith.train.trainer import Trainer

SAVES: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora_r": 2, "lora_dropout": 0.1}
KEYS = ("step", "loss", "grad_norm", "learning_rate")

Train = Callable[..., Any]


@pytest.fixture(scope="module")
def train(stories_model: Path) -> Train:
    def call(folder: Path, **settings: Any) -> Any:
        return run_training(folder, stories_model, story_rows(8), **(SAVES | settings))

    return call


def during(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Do something in the middle of a step."""
    function, calls = Trainer.training_step, [0]

    def stand_in(trainer: Trainer, *args: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            action()
        return function(trainer, *args, **keywords)

    monkeypatch.setattr(Trainer, "training_step", stand_in)


# ---- processes


def test_F30_a_process_that_stands_still_goes_on_as_if_it_had_not(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole")
    wait = (
        f"until grep -q '^State:.T' /proc/{os.getpid()}/status; do sleep 0.05; done; sleep 1; kill -CONT {os.getpid()}"
    )
    helpers = []

    def stand_still() -> None:
        helpers.append(subprocess.Popen(["sh", "-c", wait]))
        os.kill(os.getpid(), signal.SIGSTOP)

    during(monkeypatch, 3, stand_still)
    train(tmp_path / "stopped")
    assert helpers[0].wait(timeout=30) == 0
    whole, stopped = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    assert logged(stopped, *KEYS) == logged(whole, *KEYS)
    left, right = tensors(stopped), tensors(whole)
    assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize("how", ["killed", "gone"])
def test_F21_a_dead_process_that_prepared_batches_ends_the_run_with_its_code(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever was saved before stays, and the run goes on from there."""
    collate, calls = Collator.__call__, [0]

    def dying(collator: Collator, *args: Any) -> Any:
        calls[0] += 1
        if torch.utils.data.get_worker_info() is not None and calls[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else os._exit(9)
        return collate(collator, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Collator, "__call__", dying)
        with pytest.raises(StorageError) as died:
            train(tmp_path, dataloader_num_workers=1, save_steps=1)
    assert died.value.exit_code == 6
    assert "which prepared batches" in died.value.line()
    assert "set dataloader_num_workers 0" in died.value.line()
    assert "go on with: test --resume_from_checkpoint latest" in died.value.line()
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    train(tmp_path, save_steps=1, resume_from_checkpoint="auto")
    train(tmp_path / "whole", save_steps=1)
    assert logged(run, *KEYS) == logged(tmp_path / "whole" / "run", *KEYS)


def test_F16_other_rows_in_a_step_are_refused(train: Train, tmp_path: Path) -> None:
    """What may change is the number of processes; ``test_processes`` goes from two to one and back."""
    train(tmp_path)
    with pytest.raises(ConfigError, match=r"2 rows a step|global_batch_size: 2 -> 3") as refused:
        train(tmp_path, per_device_train_batch_size=3, max_steps=6, resume_from_checkpoint="latest")
    assert refused.value.exit_code == 2


# ---- files that change


@pytest.mark.parametrize("rows", [story_rows(8, seed=1), story_rows(9)])
def test_D26_a_stream_whose_file_changes_between_passes_ends_with_its_name(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]
) -> None:
    """Four steps of two rows are a pass; what a later one would read is not what the run began with."""
    file = tmp_path / "train.jsonl"
    during(monkeypatch, 3, lambda: write_rows(file, rows))
    with pytest.raises(DataError, match="changed while the run was reading it") as changed:
        train(tmp_path, streaming=True, max_steps=6)
    assert str(file) in changed.value.line()
    newest = checkpoint.find(tmp_path / "run", "latest")
    assert newest is not None
    assert newest.step == 2


def test_D26_data_in_memory_is_what_the_run_began_with(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", max_steps=6)
    during(monkeypatch, 3, lambda: write_rows(tmp_path / "again" / "train.jsonl", story_rows(3, seed=1)))
    train(tmp_path / "again", max_steps=6)
    assert logged(tmp_path / "again" / "run", *KEYS) == logged(tmp_path / "whole" / "run", *KEYS)


def test_the_account_of_a_stream_is_whole_after_a_kill_behind_the_last_step(train: Train, tmp_path: Path) -> None:
    """Found by ``make soak``: no step was left, so no row was read, and the account held one."""
    train(tmp_path, streaming=True)
    run = tmp_path / "run"
    before = (run / "ledger.json").read_bytes()
    record.close(run, "running", {})
    (run / "adapter_model.safetensors").unlink()
    train(tmp_path, streaming=True, resume_from_checkpoint="auto")
    assert is_finished(run)
    assert (run / "ledger.json").read_bytes() == before


# ---- early stopping


@pytest.mark.parametrize(
    "when", [{"eval_steps": 4}, {"eval_steps": 100}, {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1}]
)
def test_early_stopping_with_no_evaluation_before_the_end_is_refused(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: dict[str, Any]
) -> None:
    monkeypatch.setattr("tunesmith.train.run.load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigError, match="early stopping can never stop this run") as refused:
        train(tmp_path, eval_rows=story_rows(2, 1), early_stopping_patience=1, **when)
    assert "eval_steps" in refused.value.line()
    assert not (tmp_path / "run" / "run.json").exists()


# ---- trackers


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    import wandb

    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_BASE_URL", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield wandb
    with suppress(ConnectionError):
        wandb.teardown()


def curves(run: Path) -> tuple[set[str], set[str]]:
    """Names of the event files of TensorBoard, and of the folders of W&B's runs."""
    return {path.name for path in run.glob("tensorboard/*")}, {path.name for path in run.glob("wandb/*run-*-*")}


def test_F14_the_curves_of_a_replaced_run_go_with_it(train: Train, tmp_path: Path, offline: Any) -> None:
    run, both = tmp_path / "run", {"report_to": ["tensorboard", "wandb"], "save_strategy": "no"}
    train(tmp_path, **both)
    first = curves(run)
    assert [len(names) for names in first] == [1, 1]
    assert json.loads((run / "run.json").read_text())[belongings.TRACKED] == [f"wandb/{next(iter(first[1]))}"]
    (run / "wandb" / "mine.txt").write_text("mine")
    broken = {"learning_rate": 1e38, "optim": "sgd", "max_grad_norm": 0, "use_lora": False}
    with pytest.raises(NumericsError):  # what fails leaves the first run whole
        train(tmp_path, overwrite_output_dir=True, **both | {"max_steps": 8} | broken)
    assert curves(run)[0] == first[0]
    assert first[1] <= curves(run)[1]
    train(tmp_path, overwrite_output_dir=True, **both)
    second = curves(run)
    assert len(second[0]) == 1
    assert not first[0] & second[0]
    assert not first[1] & second[1]
    assert (run / "wandb" / "mine.txt").read_text() == "mine"
    train(tmp_path, overwrite_output_dir=True, save_strategy="no")
    assert curves(run)[0] == set()
    assert json.loads((run / "run.json").read_text())[belongings.TRACKED] == []


@pytest.mark.parametrize("named", ["..", "wandb/../..", "wandb", "/", "wandb/link", 3, "notes"])
def test_F14_a_record_cannot_name_other_folders_as_a_trackers(tmp_path: Path, named: Any) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "wandb" / "link").symlink_to(tmp_path / "notes")
    facts = {"settings": {"a": 1}, "settings_fingerprint": "x", belongings.TRACKED: [named]}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert belongings.tracked_folders(tmp_path) == []
    (tmp_path / "wandb" / "run-1").mkdir()
    (tmp_path / "run.json").write_text(json.dumps(facts | {belongings.TRACKED: ["wandb/run-1"]}))
    assert belongings.tracked_folders(tmp_path) == ["wandb/run-1"]
    shutil.rmtree(tmp_path / "wandb" / "run-1")
    assert belongings.tracked_folders(tmp_path) == []
