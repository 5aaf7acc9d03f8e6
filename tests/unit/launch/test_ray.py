"""A run on a local Ray cluster: the curve of one process, recovery from a death, errors that reach the user."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest

import ready_python
from helpers import logged, resolved_from, run_training, story_rows, tensors, write_rows
from tunesmith import notices
from tunesmith.cli.environment import prepare
from tunesmith.cli.main import main
from tunesmith.errors import ConfigError, ModelError
from tunesmith.launch.ray import BOOKKEEPING, train_on_ray
from tunesmith.train.callbacks import Silent

SETTINGS: dict[str, Any] = {
    "logging_steps": 1,
    "max_steps": 8,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "max_length": 256,
    "lora_dropout": 0.0,
}
WORKERS: dict[str, Any] = {"engine": "ray", "num_processes": 2, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", story_rows(20))


@pytest.fixture(scope="module")
def uninterrupted(ray_cluster, tmp_path_factory, stories_model, rows) -> tuple[Path, Any]:
    """The folder of a run on two workers, and what Ray Train itself has to say about it."""
    from ray.train.torch import TorchTrainer

    folder = tmp_path_factory.mktemp("two") / "run"
    resolved = resolved_from(
        model_name_or_path=str(stories_model), train_data=rows, output_dir=str(folder), **SETTINGS, **WORKERS
    )
    reported = []
    fit = TorchTrainer.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchTrainer, "fit", lambda self: reported.append(fit(self)) or reported[0])
        result = train_on_ray(resolved, command=["test"], listener=Silent())
    assert (result.folder, result.model_folder, result.steps) == (folder, folder, 8)
    return folder, reported[0]


def test_two_workers_train_as_one_process(uninterrupted, tmp_path, stories_model):
    """Rows of unequal token counts, accumulated: a mean of means would show."""
    one = run_training(tmp_path, stories_model, story_rows(20), gradient_accumulation_steps=4, **SETTINGS).folder
    names = ("step", "loss", "grad_norm", "learning_rate")
    expected, found = logged(one, *names), logged(uninterrupted[0], *names)
    assert len({entry[1] for entry in found}) == 8
    for left, right in zip(expected, found, strict=True):
        assert left == pytest.approx(right, rel=1e-5)


def test_checkpoints_and_metrics_are_reported_to_ray(uninterrupted):
    folder, reported = uninterrupted
    assert [Path(checkpoint.path) for checkpoint, _ in reported.best_checkpoints] == [
        folder / f"checkpoint-{step}" for step in (2, 4, 6, 8)
    ]
    losses = dict(logged(folder, "step", "loss"))
    assert [(metrics["step"], metrics["loss"]) for _, metrics in reported.best_checkpoints] == [
        (step, losses[step]) for step in (2, 4, 6, 8)
    ]
    assert not [name for name in BOOKKEEPING if (folder / name).exists()]


def test_a_killed_worker_is_recovered(uninterrupted, tmp_path, stories_model, rows):
    folder = tmp_path / "run"
    notices.clear()
    killed = threading.Thread(target=kill_a_worker, args=(folder / "checkpoint-4/manifest.json",))
    killed.start()
    resolved = resolved_from(
        model_name_or_path=str(stories_model), train_data=rows, output_dir=str(folder), **SETTINGS, **WORKERS,
        max_restarts=1,
    )  # fmt: skip
    train_on_ray(resolved, command=["test"], listener=Silent())
    killed.join()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["resumed_from"]["step"] in (4, 6)
    assert "a worker died, and all of them were started again (restart 1)" in notices.collected()
    whole, recovered = tensors(uninterrupted[0]), tensors(folder)
    assert whole.keys() == recovered.keys()
    assert all(whole[name].equal(recovered[name]) for name in whole)
    assert logged(folder, "step", "loss", "grad_norm") == logged(uninterrupted[0], "step", "loss", "grad_norm")


def kill_a_worker(after: Path) -> None:
    """Wait for a file, then kill the process of one of the two workers as the kernel would."""
    while not after.exists():
        threading.Event().wait(0.01)
    workers = [process for process in psutil.process_iter() if is_worker(process)]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)


def is_worker(process: psutil.Process) -> bool:
    """Whether this is a worker of this session: its ancestors are Ray's and those of the ready Python, not we."""
    with suppress(psutil.Error):
        if "RayTrainWorker" in "".join(process.cmdline()[:1]):
            return process.environ().get(ready_python.FOLDER) == os.environ.get(ready_python.FOLDER)
    return False


def test_an_error_of_a_worker_is_one_line_with_its_exit_code(ray_cluster, tmp_path, stories_model, capsys):
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n', encoding="utf-8")
    arguments = [f"--train_data={broken}", f"--model_name_or_path={stories_model}", f"--output_dir={tmp_path / 'run'}"]
    code = main(["train", *arguments, "--engine", "ray", "--num_processes", "1", "--max_restarts", "1"])
    printed = capsys.readouterr()
    assert code == 3, printed.err
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if not line.startswith("note:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {broken}:2: ")


def test_a_cluster_leaves_commands_ready(ray_cluster):
    """What Ray sets in this process sends no later command to a Python that has to import everything."""
    constants = runpy.run_path(str(ready_python.HERE / "client.py"), run_name="client")["constants"]
    now = constants(os.environ)
    at_start = json.loads(Path(os.environ[ready_python.FOLDER], "environment").read_text())
    with patch.dict(os.environ, at_start, clear=True):
        loud = constants(os.environ)
        prepare()  # which a command in this process may have called before; the server knows of it
        assert now in (loud, constants(os.environ))


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'tunesmith\[ray\]'"):
        train_on_ray(
            resolved_from(model_name_or_path="m", output_dir=str(tmp_path / "run"), engine="ray"),
            command=[],
            listener=Silent(),
        )


def test_a_second_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="another launcher"):
        train_on_ray(resolved_from(model_name_or_path="m", engine="ray"), command=[], listener=Silent())
