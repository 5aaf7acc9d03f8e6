"""A sweep from the command line: what is refused before any training, interruption, failed trials, the comparison."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

import ready_python
from helpers import story_rows, write_rows
from tunesmith.cli.main import main
from tunesmith.config.load import read
from tunesmith.launch.sweep import Request, Sweep, open_sweep, run_trial
from tunesmith.report.folder import write_json

NOT_FINITE = "1e25"
"""A learning rate at which training fails."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, stories_model: Path) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "train.yaml"
    path.write_text(
        f"""
        model: {{model_name_or_path: {stories_model}}}
        data:
          train_data: {write_rows(folder / "train.jsonl", story_rows(8))}
          eval_data: {write_rows(folder / "eval.jsonl", story_rows(4, seed=3))}
          max_length: 256
        training:
          {{output_dir: {folder / "run"}, max_steps: 40, logging_steps: 10, save_steps: 2, save_total_limit: 2}}
        """,
        encoding="utf-8",
    )
    return str(path)


class Ended:
    """An interrupted sweep that was continued to its end."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder = folder
        self.arguments = arguments
        self.interrupted_code = 0
        self.interrupted_state: dict[str, Any] = {}
        self.trial_processes: list[psutil.Process] = []
        self.first_trial: dict[Path, bytes] = {}

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "sweep.json").read_text())

    def comparison(self) -> dict[str, Any]:
        return json.loads((self.folder / "comparison.json").read_text())

    def record(self, trial: str) -> dict[str, Any]:
        return json.loads((self.folder / trial / "run.json").read_text())


@pytest.fixture(scope="module")
def ended(config: str) -> Ended:
    """Three trials; the second is interrupted after its first checkpoint, the third fails."""
    folder = Path(f"{Path(config).parent / 'run'}-sweep")
    arguments = [config, "--param", f"learning_rate=1e-5,1e-3,{NOT_FINITE}", "--metric", "eval_loss"]
    ended = Ended(folder, arguments)
    command = [ready_python.python(), "-m", "tunesmith", "sweep", *arguments]
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and not list(folder.glob("trial-0002/checkpoint-*/manifest.json")):
        threading.Event().wait(0.01)
    ended.trial_processes = [trial for trial in psutil.process_iter() if has_folder(trial, folder / "trial-0002")]
    process.terminate()
    ended.interrupted_code = process.wait()
    ended.interrupted_state = ended.state()
    ended.first_trial = contents(folder / "trial-0001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", ready_python.python())  # what starts the trials
        assert main(["sweep", *arguments]) == 5
    return ended


def has_folder(process: psutil.Process, folder: Path) -> bool:
    """Whether a process was started as the run of a folder."""
    try:
        return f"--output_dir={folder}" in process.cmdline()
    except psutil.Error:
        return False


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_sweep_ends_its_trial_and_says_so(ended):
    assert ended.interrupted_code == 128 + signal.SIGTERM
    assert [trial["status"] for trial in ended.interrupted_state["trials"]] == ["finished", "running"]
    assert len(ended.trial_processes) == 1
    assert not ended.trial_processes[0].is_running()


def test_the_same_command_continues_it(ended):
    """What was finished is not touched, and what was under way goes on from its checkpoint."""
    assert ended.first_trial == contents(ended.folder / "trial-0001")
    assert len(ended.first_trial) > 5
    assert ended.record("trial-0002")["resumed_from"]["step"] >= 2
    assert ended.record("trial-0002")["result"]["steps"] == 40
    assert [trial["status"] for trial in ended.state()["trials"]] == ["finished", "finished", "failed"]


def test_a_failed_trial_is_recorded_with_its_error(ended):
    failed = ended.state()["trials"][2]
    assert failed["exit_code"] == 5
    assert "is not finite at step" in failed["error"]
    assert "\n" not in failed["error"]


def test_the_comparison_is_sorted_and_marks_the_best(ended):
    comparison = ended.comparison()
    assert [Path(trial["path"]).name for trial in comparison["trials"]] == ["trial-0002", "trial-0001", "trial-0003"]
    values = [trial["value"] for trial in comparison["trials"]]
    assert values[0] < values[1]
    for trial in comparison["trials"][:2]:
        result = ended.record(Path(trial["path"]).name)["result"]
        assert (trial["value"], trial["steps"]) == (result["metrics"]["eval_loss"], result["steps"])
    assert comparison["best"] == str(ended.folder / "trial-0002")
    page = (ended.folder / "comparison.md").read_text().splitlines()
    assert page[0] == "| run | learning_rate | eval_loss | steps | seconds |  |"
    assert page[2].startswith(f"| {ended.folder / 'trial-0002'} | 1e-3 | {values[0]:.6g} | 40 |")
    assert page[2].endswith("| best |")


def test_the_command_of_the_best_gives_its_settings_again(ended):
    program, verb, *arguments = shlex.split(ended.comparison()["command"])
    assert (program, verb) == ("tunesmith", "train")
    from tunesmith.config.load import load

    again = load(arguments[0], arguments[1:]).values()
    trained = ended.record("trial-0002")["settings"]
    different = {path for path in again if again[path] != trained[path]}
    assert different == {"training.output_dir", "training.resume_from_checkpoint"}


def test_a_finished_sweep_shows_its_comparison_again(ended, capsys):
    """Without the failing trial everything is finished, so nothing is trained."""
    state = ended.state()
    state["trials"][2] |= {"status": "finished", "value": 9.0, "error": None, "exit_code": 0}
    before = contents(ended.folder / "trial-0003")
    original = (ended.folder / "sweep.json").read_text()
    (ended.folder / "sweep.json").write_text(json.dumps(state))
    try:
        assert main(["sweep", *ended.arguments, "--json"]) == 0
        printed = capsys.readouterr()
        assert [trial["number"] for trial in json.loads(printed.out)["trials"]] == [2, 1, 3]
        assert "3 of them finished earlier" in printed.err
        assert main(["sweep", *ended.arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["run", "learning_rate", "eval_loss", "steps", "seconds"]
        assert lines[1].endswith("  best")
        assert lines[-1] == f"again: {ended.comparison()['command']}"
        assert contents(ended.folder / "trial-0003") == before
    finally:
        (ended.folder / "sweep.json").write_text(original)


def test_another_sweep_in_the_same_folder_is_refused(ended, config, capsys):
    before = contents(ended.folder)
    others = [
        [config, "--param", "learning_rate=1e-5,1e-2", "--metric", "eval_loss"],
        [config, "--param", f"learning_rate=1e-5,1e-3,{NOT_FINITE}", "--metric", "loss"],
        [*ended.arguments, "--warmup_steps", "3"],
    ]
    for arguments in others:
        assert main(["sweep", *arguments]) == 2
        assert "holds another sweep" in capsys.readouterr().err
    assert contents(ended.folder) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to sweep"),
        (["--param", "learning_rate=1e-4,fast"], "learning_rate = 'fast'"),
        (["--param", "learning_rate=1e-4", "--param", "training.learning_rate=1e-3"], "given twice"),
        (["--param", "lora_r=4..8"], "give --trials N"),
        (["--param", "lora_r=4,8", "--trials", "3"], "--trials says nothing"),
        (["--param", "lora_r=4,8", "--seed", "3"], "training.seed=N"),
        (["--param", "lora_r=4..8", "--trials", "2", "--engine", "sequential"], "--engine optuna"),
        (["--param", "max_length=64,8192"], "is beyond the model's"),
        (["--param", "eval_strategy=steps,no"], "eval_loss needs evaluation"),
        (["--param", "eval_steps=20,50"], "one every 50 steps of 40"),
        (["--param", "lora_r=4,8", "--metric", "macro_f1"], "evaluation.generate is off"),
    ],
)
def test_what_is_refused_before_any_training(config, tmp_path, capsys, arguments, complaint):
    metric = [] if "--metric" in arguments else ["--metric", "eval_loss"]
    assert main(["sweep", config, *arguments, *metric, "--output", str(tmp_path / "sweep")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_folder_with_other_things_is_refused(config, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["--param", "lora_r=4,8", "--metric", "eval_loss", "--output", str(tmp_path)]
    assert main(["sweep", config, *arguments]) == 2
    assert "holds something, and no sweep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_killed_sweep_leaves_no_trial_behind(config, tmp_path):
    arguments = [config, "--param", "lora_r=4,8", "--metric", "eval_loss", "--output", str(tmp_path / "sweep")]
    process = psutil.Popen([sys.executable, "-m", "tunesmith", "sweep", *arguments], stderr=subprocess.DEVNULL)
    while not (trials := process.children()):
        threading.Event().wait(0.01)
    process.kill()
    process.wait()
    trials[0].wait(timeout=300)


def opened(config: str, folder: Path, **options: Any) -> Sweep:
    request = Request(
        draft=read(config), arguments=(config,), settings=(), params=("lora_r=4,8,16",), metric="eval_loss"
    )
    return open_sweep(request, str(folder), **options)


@pytest.mark.parametrize(("stop", "following"), [(False, 2), (True, None)])
def test_after_a_failure_a_sweep_goes_on_unless_it_is_to_stop(config, tmp_path, stop, following):
    sweep = opened(config, tmp_path / "sweep", stop_on_error=stop)
    sweep.settle(sweep.next(), {"status": "failed", "error": "out of memory", "exit_code": 4})
    after = sweep.next()
    assert (after.number if after else None) == following


def test_a_failed_trial_comes_first_when_the_command_is_given_again(config, tmp_path):
    first = opened(config, tmp_path / "sweep")
    first.settle(first.next(), {"status": "finished", "value": 1.0, "steps": 1, "seconds": 1.0})
    first.settle(first.next(), {"status": "failed", "error": "out of memory", "exit_code": 4})
    again = opened(config, tmp_path / "sweep")
    assert [again.next().number for _ in range(2)] == [2, 3]
    assert again.next() is None
    assert [trial.error for trial in again.trials] == [None] * 3


def test_a_metric_that_runs_do_not_have_ends_the_sweep(config, tmp_path):
    sweep = opened(config, tmp_path / "sweep")
    trial = sweep.next()
    result = {"steps": 4, "seconds": 1.0, "metrics": {"loss": 1.0, "eval_los": 1.0}}
    write_json(tmp_path / "sweep/trial-0001/run.json", {"status": "finished", "result": result})
    sweep.settle(trial, run_trial(sweep.job(trial)))
    assert sweep.next() is None
    assert "has no eval_loss; did you mean 'eval_los' or 'loss'?" in sweep.problem.line()


def test_a_metric_that_is_no_number_is_a_failure(config, tmp_path):
    sweep = opened(config, tmp_path / "sweep")
    trial = sweep.next()
    result = {"steps": 4, "seconds": 1.0, "metrics": {"eval_loss": "nan"}}
    write_json(tmp_path / "sweep/trial-0001/run.json", {"status": "finished", "result": result})
    sweep.settle(trial, run_trial(sweep.job(trial)))
    assert (trial.status, trial.exit_code, trial.error, trial.value) == ("failed", 5, "eval_loss is nan", None)
