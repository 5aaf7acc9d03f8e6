"""Several processes: started, watched, killed, started again, and continued by another number of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import ready_python
from helpers import logged, run_training, story_rows, tensors, write_rows
from tunesmith.train import checkpoint

STEPS = 24
NLI = Path(__file__).parents[2] / "recipes" / "nli_cot"
TUNESMITH = [ready_python.python(), "-m", "tunesmith", "train"]
MARK = "COMMAND_OF_A_TEST"
IN_REAL_PYTHON = [sys.executable, "-m", "tunesmith", "train"]
TORCHRUN = [ready_python.program("torchrun"), "--standalone", "--nproc_per_node=2"]


class Started:
    """A command that runs, with what it has said so far; it and all it started are gone when the test is over."""

    def __init__(self, command: list[str], folder: Path, cwd: Path | None, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out, self.err.open("w") as err:
            given = ready_python.environment(**environment, **{MARK: str(folder)})
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=cwd, env=given)

    def processes(self) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
        """Every process of the command with the environment it was started with."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if environment.get(MARK) == str(self.out.parent):
                    yield process, environment

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that have a rank, by their rank; of one and what it started, the one."""
        found: dict[int, psutil.Process] = {}
        for process, given in self.processes():
            if "RANK" in given:
                found.setdefault(int(given["RANK"]), process)
        return found

    def wait(self) -> int:
        return self.process.wait(timeout=300)

    def errors(self) -> list[str]:
        return [line for line in self.err.read_text().splitlines() if line.startswith("error:")]

    def end(self) -> None:
        for process, _ in list(self.processes()):
            process.kill()
        self.process.wait()


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """``start(command, folder, **environment)`` runs a command beside the test; what it says goes to the folder."""
    running: list[Started] = []

    def run(command: list[str], folder: Path, cwd: Path | None = None, **environment: str) -> Started:
        running.append(Started(command, folder, cwd, environment))
        return running[-1]

    yield run
    for started in running:
        started.end()


def until(condition: Callable[[], Any], started: Started, what: str) -> Any:
    """Wait for a condition and return what it found; fails when the command ends before, or after minutes."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert started.process.poll() is None, f"ended before {what}: {started.err.read_text()[-3000:]}"
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}: {started.err.read_text()[-3000:]}")


def saved(run: Path, step: int) -> bool:
    return (run / f"checkpoint-{step}" / checkpoint.MANIFEST).is_file()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, stories_model: Path) -> dict[str, Any]:
    """A training of several epochs over rows of unequal lengths, with dropout; its rows fill every batch."""
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", story_rows(24))
    return {
        "model_name_or_path": str(stories_model),
        "train_data": rows,
        "max_steps": STEPS,
        "save_steps": 4,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_length": 256,
        "lora_dropout": 0.1,
    }


def flags(settings: dict[str, Any], **more: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in (settings | more).items()]


@pytest.fixture(scope="module")
def whole(start: Start, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Started:
    """Two processes that nobody disturbs; the run folder is ``run`` beside what they said."""
    folder = tmp_path_factory.mktemp("whole")
    started = start([*TUNESMITH, *flags(settings, num_processes=2, output_dir=folder / "run"), "--json"], folder)
    assert started.wait() == 0, started.err.read_text()
    return started


def folder_of(started: Started) -> Path:
    return started.out.parent / "run"


def assert_same_end(run: Path, whole: Started) -> None:
    """Weights and every logged number are those of the run that nobody disturbed."""
    keys = ("step", "loss", "grad_norm", "learning_rate")
    assert logged(run, *keys) == logged(folder_of(whole), *keys)
    assert len(logged(run, *keys)) == STEPS
    name = "adapter_model.safetensors"
    assert (run / name).read_bytes() == (folder_of(whole) / name).read_bytes()


def test_two_processes_from_one_command(whole: Started) -> None:
    run = folder_of(whole)
    result = json.loads(whole.out.read_text())  # once, and nothing beside it
    assert result["steps"] == STEPS
    record = json.loads((run / "run.json").read_text())
    assert record["plan"]["num_processes"] == 2
    assert record["plan"]["gradient_accumulation_steps"] == 1
    assert sorted(log.name for log in (run / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    shown = whole.err.read_text()
    assert shown.count(f"step {STEPS:>6} ") == 1
    assert f"step {STEPS:>6} " in (run / "logs" / "rank-0.log").read_text()
    assert "step " not in (run / "logs" / "rank-1.log").read_text()
    assert json.loads((run / "checkpoint-4" / checkpoint.MANIFEST).read_text())["batches"] == {
        "num_processes": 2, "per_device_train_batch_size": 2, "global_batch_size": 4,
    }  # fmt: skip


def test_F10_F16_a_killed_rank_ends_the_run_and_other_numbers_of_processes_go_on(
    start: Start, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Then one process continues, and two again: every step has the loss it has in two processes."""
    run = tmp_path / "run"
    plain = settings | {"lora_dropout": 0.0}
    started = start([*TUNESMITH, *flags(plain, num_processes=2, output_dir=run)], tmp_path)
    until(lambda: saved(run, 4), started, "checkpoint-4")
    ranks = started.ranks()
    ranks[1].kill()
    assert started.wait() == 128 + signal.SIGKILL
    assert not any(process.is_running() for process in ranks.values())
    (line,) = started.errors()
    assert line.startswith("error: rank 1 of 2: was killed by SIGKILL")
    assert line.endswith(f"its log is {run / 'logs' / 'rank-1.log'}")
    newest = checkpoint.find(run, "latest")
    assert newest is not None
    assert len(logged(run, "step")) < STEPS - 8
    assert json.loads((run / "run.json").read_text())["status"] != "finished"

    stop = newest.step + 4
    one = plain | {"output_dir": str(run), "resume_from_checkpoint": "latest"}
    run_training(tmp_path / "one", one.pop("model_name_or_path"), story_rows(24), **one | {"max_steps": stop})
    record = json.loads((run / "run.json").read_text())
    assert record["resumed_from"]["step"] == newest.step
    assert record["plan"]["gradient_accumulation_steps"] == 2
    assert any("2 processes and 1 process continue" in text for text in record["notices"])

    two = start(
        [*TUNESMITH, *flags(plain, num_processes=2, output_dir=run, resume_from_checkpoint="latest")], tmp_path / "two"
    )
    assert two.wait() == 0, two.err.read_text()
    alone = plain | {"output_dir": str(tmp_path / "alone"), "save_strategy": "no"}
    run_training(tmp_path / "alone", alone.pop("model_name_or_path"), story_rows(24), **alone)
    parts, uninterrupted = logged(run, "step", "loss"), logged(tmp_path / "alone", "step", "loss")
    assert len(parts) == len(uninterrupted) == STEPS
    for (step, loss), (same_step, expected) in zip(parts, uninterrupted, strict=True):
        assert step == same_step
        assert loss == pytest.approx(expected, rel=1e-6)
    weights, others = tensors(run), tensors(tmp_path / "alone")
    assert weights.keys() == others.keys()
    assert max((weights[name] - others[name]).abs().max().item() for name in weights) < 1e-5


def test_torchrun_starts_again_from_the_newest_checkpoint(
    start: Start, settings: dict[str, Any], whole: Started, tmp_path: Path
) -> None:
    """N3, dropout and all: nobody can tell from the result that a rank was killed."""
    run = tmp_path / "run"
    command = [*TORCHRUN, "--max-restarts=1", "-m", "tunesmith", "train", *flags(settings, output_dir=run)]
    started = start(command, tmp_path)
    until(lambda: saved(run, 4), started, "checkpoint-4")
    started.ranks()[0].kill()
    assert started.wait() == 0, started.err.read_text()
    assert json.loads((run / "run.json").read_text())["resumed_from"]["step"] >= 4
    assert_same_end(run, whole)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Two network namespaces, name -> address, joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        reason = "network namespaces need root and iproute2"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    names = [f"tune{os.getpid()}-{number}" for number in (0, 1)]
    addresses = dict(zip(names, ("10.77.0.1", "10.77.0.2"), strict=True))
    made = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
        cable = ["ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0"]
        subprocess.run([*cable, "netns", names[1]], check=True)
        for name, address in addresses.items():
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", "eth0"], check=True)
            for device in ("lo", "eth0"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        yield addresses
    finally:
        for name in made:
            switch_off(name)
            subprocess.run(["ip", "netns", "delete", name], check=True)


def switch_off(host: str) -> None:
    """SIGKILL for everything that runs on a host."""
    listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=True)
    for number in listed.stdout.split():
        os.kill(int(number), signal.SIGKILL)


def test_a_host_that_is_killed_and_comes_back(
    start: Start, settings: dict[str, Any], whole: Started, hosts: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, second = hosts
    options = flags(settings, output_dir=run, nodes=2, num_processes=1, max_restarts=1)
    options.append(f"--rendezvous={hosts[first]}:29500")

    def switch_on(host: str, node_rank: int, name: str) -> Started:
        command = ["ip", "netns", "exec", host, *TUNESMITH, *options, f"--node_rank={node_rank}"]
        return start(command, tmp_path / name)

    one, other = switch_on(first, 0, "first"), switch_on(second, 1, "second")
    until(lambda: saved(run, 4), one, "checkpoint-4")
    switch_off(second)
    assert other.wait() == -signal.SIGKILL
    again = switch_on(second, 1, "again")
    assert one.wait() == 0, one.err.read_text()
    assert again.wait() == 0, again.err.read_text()
    record = json.loads((run / "run.json").read_text())
    assert record["resumed_from"]["step"] >= 4
    assert record["plan"]["num_processes"] == 2
    assert [started.out.read_text() for started in (one, again)] == [f"{run}\n", ""]
    assert_same_end(run, whole)


def test_F7_F8_a_signal_to_the_launcher_stops_every_rank_after_the_same_step(
    start: Start, settings: dict[str, Any], whole: Started, tmp_path: Path
) -> None:
    """Nobody can tell from the end that the run was interrupted."""
    run = tmp_path / "run"
    command = [*TUNESMITH, *flags(settings, num_processes=2, output_dir=run, max_restarts=1)]
    started = start(command, tmp_path)
    until(lambda: saved(run, 4), started, "checkpoint-4")
    ranks = started.ranks()
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 128 + signal.SIGINT
    assert not any(process.is_running() for process in ranks.values())
    (line,) = started.errors()
    newest = checkpoint.find(run, "latest")
    assert newest is not None
    assert line.startswith(
        f"error: SIGINT: stopped after step {newest.step}, with checkpoint-{newest.step}; go on with:"
    )
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert len(logged(run, "step", "loss")) == newest.step < STEPS
    assert (run / "logs" / "rank-0.log").read_text().count("start ") == 1
    again = start([*command, "--resume_from_checkpoint=latest"], tmp_path / "again")
    assert again.wait() == 0, again.err.read_text()
    assert_same_end(run, whole)


def test_F9_a_signal_to_one_of_the_ranks_of_torchrun_stops_both(
    start: Start, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    started = start([*TORCHRUN, "-m", "tunesmith", "train", *flags(settings, output_dir=run)], tmp_path)
    until(lambda: saved(run, 4), started, "checkpoint-4")
    started.ranks()[1].send_signal(signal.SIGTERM)
    assert started.wait() != 0
    newest = checkpoint.find(run, "latest")
    assert newest is not None
    for rank in (0, 1):
        assert f"rank {rank}: SIGTERM: stopped after step {newest.step}, with" in started.err.read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


def test_ranks_do_not_outlive_a_killed_launcher(start: Start, settings: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = start([*IN_REAL_PYTHON, *flags(settings, num_processes=2, output_dir=run)], tmp_path)
    until((run / "run.json").is_file, started, "the first step")
    ranks = started.ranks()
    assert len(ranks) == 2
    started.process.kill()
    gone, alive = psutil.wait_procs(ranks.values(), timeout=60)
    assert (len(gone), alive) == (2, [])


def test_an_error_in_every_rank_is_told_once(start: Start, settings: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    run = tmp_path / "run"
    started = start([*TUNESMITH, *flags(settings, num_processes=2, output_dir=run, train_data=rows)], tmp_path)
    assert started.wait() == 3
    (line,) = started.errors()
    assert line.startswith("error: rank ")
    assert f"{rows}:2" in line
    assert "Traceback" not in started.err.read_text()
    assert f"{rows}:2" in (run / "logs" / "rank-0.log").read_text() + (run / "logs" / "rank-1.log").read_text()


def test_a_model_that_cannot_be_saved_ends_the_run_with_its_code(
    start: Start, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Rank 1 has left by then, with 0; the launcher waits for rank 0 and tells what it says."""
    run = tmp_path / "run"
    merging = settings | {"save_strategy": "no", "save_merged_model": True}
    started = start([*TUNESMITH, *flags(merging, num_processes=2, output_dir=run)], tmp_path)
    until(lambda: (run / "metrics.jsonl").is_file(), started, "the first step")
    (run / "lora_weights").write_text("a file is where the adapter goes")
    assert started.wait() == 6, started.err.read_text()
    (line,) = started.errors()
    assert line.startswith(f"error: rank 0 of 2: {run / 'lora_weights'}: the model cannot be saved")
    assert "error" not in (run / "logs" / "rank-1.log").read_text().lower()


def test_a_folder_that_holds_a_run_is_refused_before_anything_starts(
    start: Start, settings: dict[str, Any], whole: Started, tmp_path: Path
) -> None:
    run = folder_of(whole)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    started = start([*TUNESMITH, *flags(settings, num_processes=2, output_dir=run)], tmp_path)
    assert started.wait() == 2
    assert "holds a run already" in started.errors()[0]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path != run} == {
        path: time for path, time in before.items() if path != run
    }


STAND_INS = {
    "scontrol": "echo localhost",
    "tunesmith": f'exec {ready_python.python()} -m tunesmith "$@"',
    # starts the tasks of a step with the variables that SLURM gives them
    "srun": """while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=2
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || exit; done""",
}


def test_a_slurm_job_trains(
    start: Start, settings: dict[str, Any], whole: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job file of ``tunesmith launch``, run as sbatch runs it, with SLURM's own commands in plain words."""
    from tunesmith.cli.main import main

    for name, words in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{words}\n")
        (tmp_path / name).chmod(0o755)
    options = flags(settings | {"max_steps": 2, "save_strategy": "no"}, output_dir=tmp_path / "run")
    assert main(["config", *options, "--to", "yaml"]) == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    place = ["--on", "slurm", "--num_processes", "2", "--gpu_type", "none", "--output", str(tmp_path / "job.sh")]
    assert main(["launch", str(tmp_path / "run.yaml"), *place]) == 0
    job = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),  # jobs that share a machine take different ports by it
        "PATH": f"{tmp_path}:{ready_python.environment()['PATH']}",
    }
    started = start(["bash", str(tmp_path / "job.sh")], tmp_path / "said", **job)
    assert started.wait() == 0, started.err.read_text()
    assert started.out.read_text() == f"{tmp_path / 'run'}\n"
    assert logged(tmp_path / "run", "step", "loss") == logged(folder_of(whole), "step", "loss")[:2]


def test_the_distributed_configuration_of_the_nli_recipe(start: Start, tmp_path: Path) -> None:
    """The command in its first lines, with the model and rows of the package, and a few steps."""
    from tunesmith.cli.main import main

    assert main(["data", "make", "nli", str(tmp_path / "data"), "--num_train=40", "--num_heldout=8"]) == 0
    documented = "--nproc_per_node 2 train/train_sft.py --config train/configs/distributed.py"
    assert documented in (NLI / "train" / "configs" / "distributed.py").read_text()
    data = {"train_data": tmp_path / "data" / "train_ft.jsonl", "eval_data": tmp_path / "data" / "eval_ft.jsonl"}
    short = {"model_id": "nano-mistral", "output_dir": tmp_path / "run", "max_steps": 2, "eval_steps": 2}
    command = [ready_python.program("torchrun"), *documented.split(), *flags(data | short), "--no_wandb"]
    started = start(command, tmp_path, cwd=NLI)
    assert started.wait() == 0, started.err.read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert (record["plan"]["num_processes"], record["plan"]["global_batch_size"]) == (2, 32)
    assert record["settings"]["launch.distributed_training"] is True
    assert logged(tmp_path / "run", "eval_loss")
