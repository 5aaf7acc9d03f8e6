"""What is prepared before a verb runs, and ranks of the tasks that srun started."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

from tunesmith.cli.environment import adopt_slurm_ranks, first_host, prepare

STEP = {
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
}
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    for name in RANKS:
        monkeypatch.setenv(name, "before the test")  # so that what is set below is undone
        monkeypatch.delenv(name)


def ranks() -> list[str | None]:
    return [os.environ.get(name) for name in RANKS]


def test_a_task_gets_its_rank() -> None:
    adopt_slurm_ranks(nodes=1)
    assert ranks() == ["3", "4", "1", "gpu03", "18456"]


@pytest.mark.parametrize(
    ("variable", "value", "nodes"),
    [("SLURM_STEP_NUM_TASKS", "1", 1), ("SLURM_STEP_NODELIST", None, 1), ("SLURM_JOB_ID", "7", 2)],
    ids=["one task", "a batch script outside of srun", "each task starts the processes of a machine"],
)
def test_what_is_no_rank(monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, nodes: int) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    adopt_slurm_ranks(nodes)
    assert ranks() == [None] * 5


def test_another_launcher_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    adopt_slurm_ranks(nodes=1)
    assert ranks() == ["0", None, None, None, None]


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-05,09],cpu1", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("gpu[12]", "gpu12"),
        ("cpu1,gpu[03-05]", "cpu1"),
        ("rack[1-2]-a,x", "rack1-a"),
    ],
)
def test_first_host_of_a_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_what_is_installed_is_listed_by_one_function_however_often_it_is_prepared() -> None:
    prepare()
    once = importlib.metadata.packages_distributions
    prepare()
    assert importlib.metadata.packages_distributions is once
