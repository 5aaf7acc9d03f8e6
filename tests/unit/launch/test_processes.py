"""How many processes a run wants, and whether that agrees with whoever started them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from
from tunesmith.config.load import load
from tunesmith.errors import ConfigError
from tunesmith.launch.processes import check_launcher, launched, processes_wanted

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def started_by(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("settings", "accelerators", "wanted"),
    [
        ({}, 0, 1),
        ({}, 1, 1),
        ({}, 4, 4),
        ({"num_processes": 3}, 0, 3),
        ({"num_processes": 1}, 4, 1),
        ({"gpu_id": 2}, 4, 1),
        ({"device_map": "cuda:0"}, 4, 1),
        ({"distributed_training": True}, 4, 4),
        ({"distributed_training": True}, 0, 1),
        ({"distributed_training": False}, 4, 1),
        ({"distributed_training": False, "num_processes": 2}, 4, 2),
    ],
)
def test_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], accelerators: int, wanted: int
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: accelerators)
    resolved = resolved_from(model_name_or_path="x", train_data="y", **settings)
    assert processes_wanted(resolved) == wanted
    started_by(monkeypatch, RANK="0", WORLD_SIZE="8")
    assert processes_wanted(resolved) == 1


def test_an_accelerate_file_counts_the_processes_of_all_machines(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 4\n")
    settings = {"model_name_or_path": "x", "train_data": "y", "accelerate_config": str(file)}
    assert processes_wanted(resolved_from(**settings)) == 4
    assert processes_wanted(resolved_from(**settings, nodes=2, node_rank=0, rendezvous="a:1")) == 2
    assert processes_wanted(resolved_from(**settings, num_processes=3)) == 3


def test_launchers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched()
    started_by(monkeypatch, WORLD_SIZE="2")  # some clusters set it for everything
    assert not launched()
    started_by(monkeypatch, RANK="1")
    assert launched()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    started_by(monkeypatch, ACCELERATE_DYNAMO_BACKEND="NO")
    assert launched()


@pytest.mark.parametrize(
    ("variables", "settings", "numbers"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"num_processes": 4}, ("4", "2")),
        ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, {"num_processes": 2}, ("2", "4")),
        ({"ACCELERATE_DYNAMO_BACKEND": "NO"}, {"num_processes": 2}, ("2", "1")),
        ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, {"num_processes": 4}, None),
        ({"RANK": "0", "WORLD_SIZE": "8"}, {}, None),
    ],
)
def test_a_launcher_that_started_another_number(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    settings: dict[str, int],
    numbers: tuple[str, str] | None,
) -> None:
    started_by(monkeypatch, **variables)
    resolved = resolved_from(model_name_or_path="x", train_data="y", **settings)
    if numbers is None:
        check_launcher(resolved)
        return
    asked, started = numbers
    with pytest.raises(ConfigError, match=f"asks for {asked} processes, and the launcher started {started}"):
        check_launcher(resolved)


@pytest.mark.parametrize(
    "file",
    [
        "nli_cot/train/configs/distributed.py",
        "reasoning/training/configs/default.json",
        "rag/configs/training.yaml",
        "sft/lora_train_config.yaml",
    ],
)
def test_every_dialect_reaches_the_settings(file: str) -> None:
    wanted = {"num_processes": 2, "nodes": 3, "node_rank": 1, "rendezvous": "host:29500", "max_restarts": 4}
    recipes = Path(__file__).resolve().parents[3] / "recipes"
    overrides = [f"launch.{name}={value}" for name, value in (wanted | {"strategy": "ddp"}).items()]
    launch = load(recipes / file, [*overrides, "train_data=rows.jsonl"]).config.launch
    assert launch.model_dump(include=set(wanted)) == wanted
    assert launch.strategy == "ddp"
