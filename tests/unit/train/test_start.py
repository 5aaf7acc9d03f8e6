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
from tunesmith.errors import ConfigError
from tunesmith.report import record
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Batches, Checkpoint
from tunesmith.train.plan import make_plan
from tunesmith.train.processes import process_seed
from tunesmith.train.start import check_batches, starting_point


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
