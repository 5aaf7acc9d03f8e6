"""From where a run starts, and what it may not continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import resolved_from, run_training
from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import ALONE, Strategy
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.report import record
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Batches, Checkpoint
from tunesmith.train.plan import make_plan
from tunesmith.train.processes import process_seed
from tunesmith.train.start import (
    check_agreement,
    check_batches,
    check_folder,
    check_free,
    check_writable,
    repeats,
    starting_point,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS", raising=False)
    notices.clear()


def settings(folder: Path, **more: Any) -> Resolved:
    return resolved_from(model_name_or_path="m", train_data="d", output_dir=str(folder), **more)


def save(folder: Path, step: int) -> Checkpoint:
    """A complete checkpoint, written by 2 processes that took 2 rows each."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    checkpoint.commit(path, Batches(2, 2, 4))
    return Checkpoint(path, step)


CHANGES: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "fewer processes, more passes": ({"gradient_accumulation_steps": 2}, 1, None),
    "the batch of a step stays": ({"global_batch_size": 4}, 1, None),
    "larger passes": ({"per_device_train_batch_size": 4}, 1, None),
    "as it was": ({}, 2, None),
    "half the batch": ({}, 1, "set gradient_accumulation_steps 2"),
    "twice the batch": ({"global_batch_size": 8}, 2, "set global_batch_size 4"),
    "no way to the batch": ({}, 3, "whose product divides 4"),
    "another order": (
        {"per_device_train_batch_size": 4, "batching": "length_grouped"}, 1, "set per_device_train_batch_size 2",
    ),
    "states that are spread": ({"gradient_accumulation_steps": 2, "strategy": "fsdp2"}, 1, "strategy ddp"),
}  # fmt: skip
"""What changes after 2 processes have taken 2 rows each: settings, processes, and the remedy where it is refused."""


@pytest.mark.parametrize("name", CHANGES)
def test_another_number_of_processes(tmp_path: Path, name: str) -> None:
    more, num_processes, remedy = CHANGES[name]
    resolved = settings(tmp_path, **{"per_device_train_batch_size": 2} | more)
    found, plan = save(tmp_path, 3), make_plan(resolved, 24, num_processes)
    strategy = Strategy(resolved.config.launch.strategy or "ddp", "command line")
    if remedy is None:
        check_batches(found, resolved, plan, strategy)
        assert any("dropout" in text for text in notices.collected()) == (num_processes != 2)
        return
    with pytest.raises(ConfigError) as caught:
        check_batches(found, resolved, plan, strategy)
    assert caught.value.exit_code == 2
    assert "checkpoint-3" in caught.value.what
    assert caught.value.remedy is not None
    assert remedy in caught.value.remedy


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "run")
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StorageError, match="is a file, not a folder"):
        check_writable(file)
    with pytest.raises(StorageError, match="cannot write there: Not a directory"):
        check_writable(file / "run")
    for asked in (check_folder, starting_point):
        with pytest.raises(StorageError, match="is a file, not a folder"):
            asked(settings(file))
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(StorageError, match="cannot write there: no room"):
        check_writable(tmp_path / "new")


@pytest.mark.parametrize("held", ["run.json", "config.json", "README.md", "model.safetensors", "checkpoint-3"])
def test_what_no_run_has_written_is_left_alone(tmp_path: Path, held: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").touch()  # no run writes a file of this name
    resolved, free = settings(run), settings(run, overwrite_output_dir=True)
    check_free(resolved)
    assert check_folder(resolved) == run
    assert starting_point(resolved) is None
    if held.startswith("checkpoint"):
        (run / held).mkdir()
    else:
        (run / held).write_text("{}")
    for asked in (check_free, check_folder, starting_point):
        for each in (resolved, free):
            with pytest.raises(ConfigError, match=f"holds what no run has written.*{held}"):
                asked(each)


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    resolved = settings(run)
    record.begin(run, resolved, ["test"], {})
    for asked in (check_free, check_folder, starting_point):
        with pytest.raises(ConfigError, match="holds a run already") as caught:
            asked(resolved)
        assert caught.value.where == "command line"
    free = settings(run, overwrite_output_dir=True)
    check_free(free)
    assert check_folder(free) == run
    assert check_folder(settings(run, resume_from_checkpoint="latest")) == run


def test_machines_beside_the_first_may_find_its_run(tmp_path: Path) -> None:
    record.begin(tmp_path, settings(tmp_path), ["test"], {})
    beside = settings(tmp_path, nodes=2, node_rank=1, rendezvous="host:29500")
    assert check_folder(beside) == tmp_path
    with pytest.raises(ConfigError, match="holds a run already"):
        check_folder(settings(tmp_path, nodes=2, node_rank=0, rendezvous="host:29500"))


def test_a_run_is_repeated_only_where_processes_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, again = settings(tmp_path), settings(tmp_path, max_restarts=2, num_processes=2)
    assert not repeats(again)  # there is no run yet
    record.begin(tmp_path, plain, ["test"], {})
    assert repeats(again)  # where it is launched makes no other run of it
    assert not repeats(plain)
    assert not repeats(settings(tmp_path, max_restarts=2, num_processes=2, seed=3))
    assert check_folder(again) == tmp_path
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert not repeats(again)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert repeats(plain)
    record.close(tmp_path, "finished", {})
    assert not repeats(plain)


def test_the_checkpoint_asked_for_is_where_a_run_starts(tmp_path: Path) -> None:
    first, second = save(tmp_path, 9), save(tmp_path, 10)
    assert starting_point(settings(tmp_path, resume_from_checkpoint="latest")) == second
    assert starting_point(settings(tmp_path, resume_from_checkpoint=str(first.path))) == first
    (second.path / "late").touch()  # what a manifest does not name does not spoil a checkpoint
    assert starting_point(settings(tmp_path, resume_from_checkpoint="latest")) == second
    (second.path / checkpoint.MANIFEST).unlink()
    assert starting_point(settings(tmp_path, resume_from_checkpoint="latest")) == first


def test_processes_must_agree_on_step_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other processes say is put in their place; who says what to whom is accelerate's business."""
    import accelerate.utils

    def others_say(*said: tuple[int, str | None]) -> None:
        monkeypatch.setattr(accelerate.utils, "gather_object", lambda own: [*own, *said])

    found = Checkpoint(Path("checkpoint-3"), 3)
    check_agreement(found, "a")  # alone
    others_say((3, "a"), (3, "a"))
    check_agreement(found, "a")
    others_say((0, None))
    check_agreement(None, None)
    others_say((3, "a"), (0, "a"))
    with pytest.raises(StorageError, match="from different steps: 3, 3, 0"):
        check_agreement(found, "a")
    with pytest.raises(StorageError, match="from different steps: 0, 3, 0"):
        check_agreement(None, "a")
    others_say((3, "b"))
    with pytest.raises(DataError, match="different training data"):
        check_agreement(found, "a")


def test_a_refusal_has_the_numbers_of_both_sides(tmp_path: Path) -> None:
    resolved = settings(tmp_path, per_device_train_batch_size=3)
    with pytest.raises(ConfigError, match=r"4 rows a step \(2 processes x 2 rows\).* takes 3 \(1 process x 3 rows"):
        check_batches(save(tmp_path, 3), resolved, make_plan(resolved, 24, 1), ALONE)


def test_an_unfinished_run_goes_on_where_processes_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, again = settings(tmp_path), settings(tmp_path, max_restarts=1, num_processes=2)
    assert starting_point(again) is None
    record.begin(tmp_path, plain, ["test"], {})
    assert starting_point(again) is None  # before its first checkpoint
    (tmp_path / "checkpoint-2").mkdir()  # not complete
    assert starting_point(again) is None
    newest = save(tmp_path, 4)
    assert starting_point(again) == newest
    with pytest.raises(ConfigError, match="holds a run already"):
        starting_point(plain)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")  # torchrun --max-restarts 3
    assert starting_point(plain) == newest
    with pytest.raises(ConfigError, match="holds a run already"):
        starting_point(settings(tmp_path, seed=7))
    record.close(tmp_path, "finished", {})
    with pytest.raises(ConfigError, match="holds a run already"):
        starting_point(again)


def test_random_numbers_of_a_process_that_is_left_none(tmp_path: Path, models_folder: Path) -> None:
    """One process continues what two have written: its dropout is neither that of step 1 nor that of another."""
    options: dict[str, Any] = {"max_length": 64, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    options |= {"too_long": "drop", "max_dropped": 1.0}
    rows = [{"prompt": "ab ", "completion": "cd"}, {"prompt": "e ", "completion": "fgh"}] * 2
    run_training(tmp_path, models_folder / "llama", rows, **options)
    written = tmp_path / "run" / "checkpoint-1"
    (written / "rng_state.pth").rename(written / "rng_state_0.pth")
    checkpoint.commit(written, Batches(2, 1, 2))
    run_training(tmp_path, models_folder / "llama", rows, **options | {"resume_from_checkpoint": str(written)})
    assert torch.initial_seed() == process_seed(42, step=1)


def test_seeds_of_processes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = set()
    for rank in range(8):
        monkeypatch.setenv("RANK", str(rank))
        seeds |= {process_seed(42, step) for step in range(0, 100, 10)}
    assert len(seeds) == 80
