"""Trust rows F7-F10, F29: signals wherever they land, memory that runs out, and a process that stands still.

A signal is sent by the run to itself at a named point, which proves the same as one from outside and costs no process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import logged, run_training, story_rows
from tunesmith.errors import Interrupted
from tunesmith.train import checkpoint, signals
from tunesmith.train.trainer import Trainer

STEPS = 6
EVERYTHING: dict[str, Any] = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_steps": 2,
    "generate": True,
    "max_new_tokens": 2,
    "generate_limit": 1,
    "task": "exact",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.1,
}
KEYS = ("step", "loss", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def train(stories_model: Path) -> Callable[..., Any]:
    def call(folder: Path, **settings: Any) -> Any:
        return run_training(
            folder, stories_model, story_rows(8), eval_rows=story_rows(12, seed=5)[10:], **(EVERYTHING | settings)
        )

    return call


@pytest.fixture(scope="module")
def whole(train: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder / "run"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``at(owner, name, numbers, call=2)``: the second call of a function begins with these signals."""
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)

    def arrange(owner: Any, name: str, *numbers: int, call: int = 1) -> None:
        function, calls = getattr(owner, name), []

        def stand_in(*args: Any, **keywords: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return function(*args, **keywords)

        monkeypatch.setattr(owner, name, stand_in)

    before = {number: signal.getsignal(number) for number in signals.HANDLED}
    yield arrange
    assert {number: signal.getsignal(number) for number in signals.HANDLED} == before


def same_end(run: Path, whole: Path) -> None:
    assert logged(run, *KEYS) == logged(whole, *KEYS)
    assert len(logged(run, *KEYS)) == STEPS
    assert logged(run, "step", "eval_loss") == logged(whole, "step", "eval_loss")
    name = "adapter_model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


def owner_of(place: str) -> tuple[Any, str]:
    """The module or class that holds a function, and its name there."""
    *modules, name = place.split(".")
    for length in range(len(modules), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(modules[:length]))
        except ModuleNotFoundError:
            continue
        for part in modules[length:]:
            owner = getattr(owner, part)
        return owner, name
    raise AssertionError(place)


POINTS = {  # what the signal falls into, which call of it, the step whose checkpoint is kept
    "step": ("tunesmith.train.trainer.Trainer.compute_loss", 5, 3),
    "accumulation": ("tunesmith.train.trainer.Trainer.compute_loss", 6, 3),
    "evaluation": ("tunesmith.train.trainer.Trainer.evaluate", 2, 4),
    "generation": ("tunesmith.train.evaluator.Evaluator.__call__", 2, 4),
    "saving": ("tunesmith.train.checkpoint.commit", 2, 4),
}


@pytest.mark.parametrize("point", POINTS)
def test_F7_a_signal_during_the_steps(
    point: str, train: Callable[..., Any], whole: Path, at: Callable[..., None], tmp_path: Path
) -> None:
    place, call, step = POINTS[point]
    number = {"step": signal.SIGINT, "saving": signal.SIGUSR1}.get(point, signal.SIGTERM)  # F8: SIGINT the same way
    at(*owner_of(place), number, call=call)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path)
    run = tmp_path / "run"
    assert stopped.value.exit_code == 128 + number
    assert f"stopped after step {step}, with checkpoint-{step}" in stopped.value.line()
    assert "go on with: test --resume_from_checkpoint latest" in stopped.value.line()
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["stopped"]) == ("interrupted", stopped.value.line())
    newest = checkpoint.find(run, "latest")
    assert newest is not None
    assert newest.step == step
    assert not (run / "adapter_model.safetensors").exists()
    train(tmp_path, resume_from_checkpoint="latest")
    same_end(run, whole)


@pytest.mark.parametrize("place", ["tunesmith.train.trainer.Trainer.compute_loss", "tunesmith.train.folder.save_model"])
def test_F7_a_run_that_has_taken_its_last_step_is_finished(
    place: str, train: Callable[..., Any], whole: Path, at: Callable[..., None], tmp_path: Path
) -> None:
    at(*owner_of(place), signal.SIGTERM, call=2 * STEPS if "Trainer" in place else 1)
    train(tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    same_end(tmp_path / "run", whole)


BEFORE = {
    "data preparation": "tunesmith.train.prepare.select_rows",
    "tokenisation": "tunesmith.data.examples.ExampleBuilder.examples",
    "loading": "tunesmith.train.run.load_model",
    "evaluation before the first step": "tunesmith.train.trainer.Trainer.evaluate",
}


@pytest.mark.parametrize("point", BEFORE)
def test_F7_a_signal_before_the_first_step(
    point: str, train: Callable[..., Any], at: Callable[..., None], tmp_path: Path
) -> None:
    at(*owner_of(BEFORE[point]), signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, eval_on_start=True, cache=False)
    assert stopped.value.exit_code == 143
    assert "the same command starts again" in stopped.value.line() or "before the first step" in stopped.value.line()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_F8_a_second_signal_ends_the_run_at_once(
    number: signal.Signals, train: Callable[..., Any], at: Callable[..., None], tmp_path: Path
) -> None:
    """The step is not finished, and the checkpoint before it is as good as it was."""
    at(Trainer, "compute_loss", number, number, call=6)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path)
    run = tmp_path / "run"
    assert stopped.value.exit_code == 128 + number
    assert "stopped at once" in stopped.value.line()
    assert "--resume_from_checkpoint latest" in stopped.value.line()
    assert len(logged(run, "step", "loss")) == 2
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    newest = checkpoint.find(run, "latest")
    assert newest is not None
    assert newest.step == 2


def test_a_signal_that_is_told_twice_is_one_signal(
    train: Callable[..., Any], at: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system signals every process of a job, and launchers pass it on to the same ones."""
    at(Trainer, "compute_loss", signal.SIGTERM, signal.SIGTERM, call=6)
    monkeypatch.setattr(signals, "ECHO_SECONDS", 60.0)
    with pytest.raises(Interrupted, match="stopped after step 3"):
        train(tmp_path)


def test_the_time_limit_ends_a_run_with_a_checkpoint_and_without_an_error(
    train: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    result = train(tmp_path, time_limit=1e-3)
    run = tmp_path / "run"
    assert result.steps == 1
    assert result.stopped.startswith("the time limit was reached: stopped after step 1, with checkpoint-1; go on with:")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    train(tmp_path, resume_from_checkpoint="latest")
    same_end(run, whole)


@pytest.mark.parametrize(
    ("written", "seconds"), [("2h", 7200), ("1h30m", 5400), ("90m", 5400), ("45s", 45), ("45", 45), (10, 10)]
)
def test_times_in_words(written: Any, seconds: float) -> None:
    from tunesmith.config.names import seconds as convert

    assert convert(written, None) == seconds


@pytest.mark.parametrize("written", ["soon", "2x", "h", "1h2h"])
def test_what_is_no_time_stays_and_is_refused_by_its_type(written: str) -> None:
    from tunesmith.config.names import seconds as convert

    assert convert(written, None) == written


@pytest.mark.parametrize(
    ("command", "continued"),
    [
        (["python", "-m", "tunesmith", "train", "a b.yaml"], "tunesmith train 'a b.yaml'"),
        (["python", "sft.py", "--overwrite_output_dir", "--seed=1"], "python sft.py --seed=1"),
        (["t", "--resume-from-checkpoint", "x", "--lr=1"], "t --lr=1"),
        (["t", "training.resume_from_checkpoint=x", "--lr=1"], "t --lr=1"),
    ],
)
def test_the_command_that_goes_on(command: list[str], continued: str) -> None:
    assert signals.going_on(command) == f"{continued} --resume_from_checkpoint latest"
