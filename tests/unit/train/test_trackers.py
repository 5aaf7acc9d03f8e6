"""Trackers, each at work on this machine alone: curves, samples, settings without secrets, and runs that go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers import run_training

ROWS = [{"prompt": f"Tom has {index}", "completion": " balls" * index} for index in range(1, 5)]
HELD_OUT = [{"prompt": "Mia has 2", "completion": " balls balls"}]


def trained(folder: Path, models: Path, *trackers: str, **settings: Any) -> Path:
    """A run of the tiny model that shows a sample after its evaluation."""
    evaluated: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "generate": True,
        "max_new_tokens": 2,
        "task": "exact",
    }
    evaluated["max_length"] = 64  # what the model has
    result = run_training(
        folder, models / "mistral", ROWS, eval_rows=HELD_OUT, report_to=list(trackers), **(evaluated | settings)
    )
    return Path(result.folder)


def scalars(run: Path) -> dict[str, list[int]]:
    """Steps of every curve that TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    found = {name: [event.step for event in events.Scalars(name)] for name in tags["scalars"]}
    return found | {name: [event.step for event in events.Tensors(name)] for name in tags["tensors"]}


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path, models_folder: Path) -> None:
    """The first process went further than its last checkpoint; the second begins there and says those steps again."""
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    run = trained(tmp_path, models_folder, "tensorboard", **saved)
    assert scalars(run)["train/loss"] == [1, 2, 3, 4, 5]
    assert any(name.startswith("samples") for name in scalars(run))
    for name in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(run / name, ignore_errors=True)
    trained(tmp_path, models_folder, "tensorboard", **saved, resume_from_checkpoint=str(run / "checkpoint-2"))
    shown = scalars(run)
    assert shown["train/loss"] == [1, 2, 3, 4, 5]
    assert shown["eval/loss"] == [2, 4, 5]
    assert [steps for name, steps in shown.items() if name.startswith("args")] == [[0]]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """W&B without a server."""
    import wandb

    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield wandb
    with suppress(ConnectionError):
        wandb.teardown()


def test_wandb_takes_its_place_from_the_environment_and_keeps_its_run(
    tmp_path: Path, models_folder: Path, offline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"PROJECT": "shop", "ENTITY": "us", "NAME": "first", "RUN_GROUP": "spring", "DIR": str(tmp_path / "logs")}
    for name, value in named.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    seen: list[Any] = []
    finish = offline.finish

    def look(*args: Any, **keywords: Any) -> None:
        run = offline.run
        seen.append((run.id, run.project, run.entity, run.name, run.group, Path(run.dir), dict(run.config)))
        seen.append(set(run.summary.keys()))
        finish(*args, **keywords)

    monkeypatch.setattr(offline, "finish", look)
    saved = {"save_strategy": "steps", "save_steps": 2}
    run = trained(tmp_path, models_folder, "wandb", **saved, max_steps=2)
    trained(tmp_path, models_folder, "wandb", **saved, max_steps=4, resume_from_checkpoint=str(run / "checkpoint-2"))
    (first, curves, second, _) = seen
    assert first[1:5] == ("shop", "us", "first", "spring")
    assert first[5].is_relative_to(tmp_path / "logs")
    assert first[0] == second[0]
    assert {"train/loss", "eval/loss", "samples"} <= curves
    assert first[6]["training.max_steps"] == 2
    assert "k" * 40 not in str(first[6])
