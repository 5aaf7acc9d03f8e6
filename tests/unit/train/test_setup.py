"""One list of steps: whoever takes part of it, or goes on after a problem, takes it in the same order."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers import resolved_from, story_rows, write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.errors import ConfigError, DataError
from tunesmith.launch.processes import planned
from tunesmith.train import setup as steps_of_a_run
from tunesmith.train.processes import Processes, environment_of, running
from tunesmith.train.setup import STEPS, Problems, Setup, set_up

INPUTS = {"resolved", "processes"}
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    notices.clear()


def settings(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "train_data": write_rows(folder / "train.jsonl", story_rows(21)),
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "max_length": 256,
        "per_device_train_batch_size": 2,
        **more,
    }


def parts(setup: Setup) -> set[str]:
    return {name for name in STEPS if setup.has(name)}


def test_every_step_needs_what_is_made_before_it() -> None:
    known = set(INPUTS)
    for name, step in STEPS.items():
        assert steps_of_a_run._needs(step) <= known, name
        known.add(name)
    assert known == set(Setup.__dataclass_fields__)


def test_a_run_has_every_part(tmp_path: Path, stories_model: Path) -> None:
    setup = set_up(resolved_from(**settings(tmp_path, stories_model)), Processes())
    assert parts(setup) == set(STEPS)
    assert (setup.checkpoint, setup.resume, setup.evaluator, setup.samples) == (None, None, None, None)
    assert setup.plan.num_batch_rows == len(setup.rows) == len(setup.data.train)


def test_a_part_comes_with_what_it_needs_alone(tmp_path: Path, stories_model: Path) -> None:
    """A preview of a run that exists: its folder is not asked for, so it is no problem."""
    resolved = resolved_from(**settings(tmp_path, stories_model))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    assert parts(set_up(resolved, Processes(), only=["data"])) == {"tokenizer", "data"}
    with pytest.raises(ConfigError, match="holds what no run has written"):
        set_up(resolved, Processes(), only=["folder"])
    with pytest.raises(ConfigError, match="holds what no run has written"):
        set_up(resolved, Processes())


def test_the_first_problem_is_raised_and_all_are_collected(
    tmp_path: Path, stories_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of processes, rows and a tracker that are wrong; the rest goes on without what they would have given."""
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed
    more = {"strategy": "fsdp2", "train_data": str(tmp_path / "absent.jsonl"), "report_to": ["mlflow"]}
    resolved = resolved_from(**settings(tmp_path, stories_model) | more)
    with pytest.raises(ConfigError, match="there is one"):
        set_up(resolved, Processes())
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        set_up(resolved, Processes(2))
    problems = Problems()
    setup = set_up(resolved, Processes(), problems=problems)
    assert [problem.exit_code for problem in problems] == [2, 3, 4]
    assert parts(setup) == {"machine", "folder", "checkpoint", "tokenizer", "weights"}
    assert "NOT_MADE" in repr(setup)


def test_an_error_of_a_library_is_a_problem_too() -> None:
    problems = Problems()
    assert problems.attempt(lambda: int("x"), 7) == 7
    assert problems[0].line().startswith("ValueError: invalid literal")
    problems.attempt(lambda: int("x"))
    assert len(problems) == 1, "the same is told once"


@pytest.mark.parametrize(
    ("error", "code"), [(PermissionError(13, "Permission denied", "/x"), 6), (MemoryError(), 4), (RuntimeError(), 1)]
)
def test_what_the_machine_refuses_has_its_code(error: Exception, code: int) -> None:
    def refused() -> None:
        raise error

    problems = Problems()
    problems.attempt(refused)
    assert [problem.exit_code for problem in problems] == [code]


# processes


def running_as(monkeypatch: pytest.MonkeyPatch, number: int, rank: int = 0) -> None:
    """What a launcher on one machine tells its process."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}.items():
        monkeypatch.setenv(name, str(value))


def checked(capsys: pytest.CaptureFixture[str], values: dict[str, Any], *more: str) -> dict[str, Any]:
    notices.clear()
    capsys.readouterr()
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    code = main(["check", *flags, *more, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (code, found["problems"]) == (0, [])
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_check_for_four_processes_and_the_run_agree(
    strategy: str,
    batching: str,
    tmp_path: Path,
    stories_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = settings(tmp_path, stories_model, strategy=strategy, batching=batching, global_batch_size=16)
    found = checked(capsys, values | {"num_processes": 4})
    running_as(monkeypatch, 4)
    setup = set_up(resolved_from(**values), running())
    assert {name: found["steps"][name] for name in asdict(setup.plan)} == asdict(setup.plan)
    assert (setup.plan.num_processes, setup.plan.global_batch_size) == (4, 16)
    assert setup.plan.gradient_accumulation_steps == 2
    assert len(setup.rows) % 8 == 0, "each process gets equally many full batches"
    assert len(setup.rows) - setup.plan.num_batch_rows < 8
    host = found["memory"]["host"]
    assert host["processes"] == 4
    assert host["peak"] == pytest.approx(4 * host["each"], rel=0.05), "a tiny model: libraries are all of it"
    assert found["memory"]["available"] == host["available"] // 4


def test_strategies_share_memory_as_they_share_work(
    tmp_path: Path, stories_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(tmp_path, stories_model, use_lora=False, num_processes=4)
    on = {name: checked(capsys, values | {"strategy": name, "gpu": "24GB"})["memory"] for name in STRATEGIES}
    assert on["zero3"]["weights"] < on["zero2"]["weights"]
    assert on["fsdp2"]["optimizer"] * 4 == pytest.approx(on["ddp"]["optimizer"], abs=4)
    assert on["ddp"]["loaded"] == on["zero3"]["loaded"] > 0
    assert all(found["host"]["fits"] is None for found in on.values()), "the memory of another machine is not known"


def test_several_machines_are_planned_without_a_rendezvous(
    tmp_path: Path, stories_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(tmp_path, stories_model, num_processes=2)
    found = checked(capsys, values, "--nodes", "3")
    assert (found["steps"]["num_processes"], found["steps"]["global_batch_size"]) == (6, 12)
    assert found["memory"]["host"]["processes"] == 2
    given = checked(capsys, values, "--nodes", "3", "--node_rank", "1", "--rendezvous", "host:29500")
    assert given["steps"] == found["steps"]
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    assert main(["check", *flags, "--nodes", "0"]) == 2
    assert main(["check", *flags, "--nodes", "3", "--rendezvous", "host"]) == 2


def test_planned_processes_are_those_that_a_launcher_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**more: Any) -> Processes:
        return planned(resolved_from(model_name_or_path="m", train_data="d", **more))

    assert of(num_processes=4) == Processes(4)
    assert of(num_processes=4, nodes=2, node_rank=0, rendezvous="a:1").total == 8
    assert of(num_processes=4, engine="ray") == Processes(4)
    assert running() == Processes(1)
    assert environment_of(Processes(4, 2))["WORLD_SIZE"] == "8"
    assert environment_of(Processes(4, 2))["LOCAL_RANK"] == "3"
    assert "LOCAL_RANK" not in environment_of(Processes())
    running_as(monkeypatch, 4, rank=1)
    assert of() == running() == Processes(4)
    assert environment_of(running())["LOCAL_RANK"] == "1"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert running() == Processes(4)


# the list is nowhere repeated


def imported(path: Path) -> set[str]:
    """What a module imports of ours, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{name.name}" for node in found for name in node.names if "tunesmith" in str(node.module)}


def test_nobody_repeats_the_steps_by_hand() -> None:
    source = Path(steps_of_a_run.__file__)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    steps = {
        f"{node.module}.{name.name}"
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert len(steps) >= len(STEPS)
    for name in ("train/run.py", "train/check.py", "train/preview.py", "launch/torchrun.py", "launch/ray.py"):
        repeated = imported(source.parents[1] / name) & steps
        assert repeated <= {"tunesmith.model.device.seen"}, name
