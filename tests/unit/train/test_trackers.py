"""Trackers, each at work on this machine alone: curves, samples, settings without secrets, and a run that goes on.

One run tells all that are installed, and goes on from an early checkpoint in a second one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from, run_training
from tunesmith.errors import ModelError
from tunesmith.installed import is_importable
from tunesmith.train.tracker_packages import check_installed
from tunesmith.train.tracker_runs import Start, Trackio, start_of

ROWS = [{"prompt": f"Tom has {index}", "completion": " balls" * index} for index in range(1, 5)]
HELD_OUT = [{"prompt": "Mia has 2", "completion": " balls balls"}]
SECRETS = {"WANDB_API_KEY": "sentinel" * 5, "HF_TOKEN": "hf_" + "sentinel" * 4}
SETTINGS: dict[str, Any] = {
    "eval_strategy": "steps", "eval_steps": 2, "gen_every_n_steps": 2, "max_new_tokens": 2, "max_length": 64,
    "save_strategy": "steps", "save_steps": 2, "max_steps": 5,
}  # fmt: skip
ALL = ("tensorboard", "wandb", "trackio", "mlflow")


class Told:
    """A folder in which a run was told to trackers, and what each wrote where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.records: list[dict[str, str]] = []
        self.wandb: list[Any] = []


def needs(tracker: str) -> pytest.MarkDecorator:
    """Run a test where a tracker is installed."""
    return pytest.mark.skipif(not is_importable(tracker), reason=f"{tracker} is not installed (pip install {tracker})")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[Told]:
    """A run of 5 steps, and again from step 2: the first process went further than its last checkpoint."""
    import wandb

    found = Told(tmp_path_factory.mktemp("told"))
    environment = {
        "WANDB_MODE": "offline", "WANDB_PROJECT": "shop", "WANDB_ENTITY": "us", "WANDB_RUN_GROUP": "spring",
        "WANDB_DIR": f"{found.folder}/logs", "TRACKIO_DIR": f"{found.folder}/trackio",
        "MLFLOW_TRACKING_URI": f"file:{found.folder}/mlruns", "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # a database takes half a minute to make
    }  # fmt: skip
    finish = wandb.finish

    def look(*args: Any, **keywords: Any) -> None:
        found.wandb.append((wandb.run, dict(wandb.run.config), set(wandb.run.summary.keys())))
        finish(*args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_RUN_ID", "WANDB_NAME", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
            patch.delenv(name, raising=False)
        for name, value in (environment | SECRETS).items():
            patch.setenv(name, value)
        with suppress(ConnectionError):
            wandb.teardown()  # another test may have begun with it, and it reads the environment once a process
        patch.chdir(found.folder)
        patch.setattr(wandb, "finish", look)
        settings = SETTINGS | {"eval_rows": HELD_OUT, "report_to": [name for name in ALL if is_importable(name)]}
        for more in ({}, {"resume_from_checkpoint": str(found.run / "checkpoint-2")}):
            run_training(found.folder, models_folder / "mistral", ROWS, **settings | more)
            found.records.append(json.loads((found.run / "run.json").read_text())["trackers"])
            for name in ("checkpoint-4", "checkpoint-5"):
                shutil.rmtree(found.run / name)
        yield found
        with suppress(ConnectionError):
            wandb.teardown()


def test_a_run_goes_on_under_its_name_and_ids(told: Told) -> None:
    first, second = told.records
    assert first == second
    assert first["run_name"].startswith("mistral-")


def test_tensorboard_shows_each_step_once(told: Told) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(told.run / "tensorboard"), {"tensors": 0})  # as TensorBoard's own server reads them
    events.Reload()
    steps = {name: [event.step for event in events.Tensors(name)] for name in events.Tags()["tensors"]}
    assert steps["train/loss"] == [1, 2, 3, 4, 5]
    assert steps["eval/loss"] == [2, 4, 5]
    assert steps["samples/text_summary"] == [2, 4]
    assert steps["args/text_summary"] == [0]
    assert steps["settings/text_summary"] == [0, 2]


def test_wandb_takes_its_place_from_the_environment(told: Told) -> None:
    (first, config, curves), (second, *_) = told.wandb
    assert (first.project, first.entity, first.group) == ("shop", "us", "spring")
    assert first.id == second.id == told.records[0]["wandb"]
    assert first.name == second.name == told.records[0]["run_name"]
    assert Path(first.dir).is_relative_to(told.folder / "logs")
    assert {"train/loss", "eval/loss", "samples"} <= curves
    assert (config["training.max_steps"], config["data.max_length"]) == (5, 64)


@needs("trackio")
def test_trackio_keeps_one_run(told: Told) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    name = told.records[0]["run_name"]
    assert SQLiteStorage.get_runs("tunesmith") == [name]
    entries = SQLiteStorage.get_logs("tunesmith", name)
    losses = [entry["train/global_step"] for entry in entries if "train/loss" in entry]
    assert losses == [1, 2, 3, 4, 5, 3, 4, 5]
    (table, *_) = (entry["samples"] for entry in entries if "samples" in entry)
    assert table["_value"][0]["question"].endswith("Mia has 2")
    assert SQLiteStorage.get_run_config("tunesmith", name)["training.max_steps"] == 5


@needs("trackio")
def test_a_new_run_of_an_old_name_is_another_one_at_trackio(told: Told) -> None:
    import trackio

    resolved = resolved_from(model_name_or_path="m", train_data="x", experiment="names")
    ids = []
    for step in (0, 0, 2):
        callback = Trackio(Start(resolved, "same", {}, step))
        callback.setup(None, None, None)
        ids.append(trackio.context_vars.current_run.get().id)
        trackio.log({"loss": 1.0})
        callback.end(failed=False)
    assert ids[0] != ids[1] == ids[2]


@needs("mlflow")
def test_mlflow_keeps_one_run(told: Told) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"file:{told.folder}/mlruns")
    run = client.get_run(told.records[0]["mlflow"])
    assert (run.info.run_name, run.info.status) == (told.records[0]["run_name"], "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "tunesmith"
    assert {point.step for point in client.get_metric_history(run.info.run_id, "loss")} == {1, 2, 3, 4, 5}
    assert {point.step for point in client.get_metric_history(run.info.run_id, "eval_loss")} == {2, 4, 5}
    assert run.data.params["training.max_steps"] == "5"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == [
        "samples/step-2.md", "samples/step-4.md",
    ]  # fmt: skip


def test_no_tracker_gets_a_secret(told: Told) -> None:
    files = [path for path in told.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if b"sentinel" in path.read_bytes()]


def test_a_tracker_that_is_absent_is_told_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    base = {"model_name_or_path": "m", "train_data": "x"}
    with pytest.raises(ModelError, match=r"report_to: mlflow is not installed.*tunesmith\[mlflow\]"):
        check_installed(resolved_from(**base, report_to=["tensorboard", "mlflow"]))
    with pytest.raises(ModelError, match=r"trackio and mlflow are not.*tunesmith\[trackio,mlflow\]"):
        check_installed(resolved_from(**base, report_to=["trackio", "mlflow"]))
    (tmp_path / "wandb").mkdir()  # where runs lie
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path)])
        patch.delitem(sys.modules, "wandb", raising=False)
        with pytest.raises(ModelError, match="use_wandb: wandb is not installed"):
            check_installed(resolved_from(**base, use_wandb=True))


def test_a_replaced_run_leaves_its_name_behind(tmp_path: Path) -> None:
    resolved = resolved_from(model_name_or_path="m", train_data="x", output_dir=str(tmp_path))
    record = {
        "settings": resolved.values(),
        "settings_fingerprint": "f",
        "trackers": {"run_name": "old", "wandb": "id"},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert start_of(resolved, None).earlier == {}
    assert start_of(resolved, 4).run_name == "old"
    (tmp_path / "run.json").write_bytes(b"\0" * 300)
    assert start_of(resolved, 4).earlier == {}
