"""The commands of the pages on sweeps and Ray pass every check; that they train is tested in tests/unit/launch."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from helpers import commands
from tunesmith.cli.main import main

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def beside_recipes(tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused_for_its_metric_alone(sweep: list[str], capsys) -> bool:
    """Whether a sweep passes every check but the last one, when its metric is one that nothing logs."""
    metric = sweep.index("--metric") + 1
    assert main([*sweep[:metric], "eval_accuracy", *sweep[metric + 1 :]]) == 2
    return "eval_accuracy comes from generated answers" in capsys.readouterr().err


def test_the_commands_on_sweeps(beside_recipes, capsys):
    make_data, sweep = [shlex.split(line)[1:] for line in commands(PROJECT / "docs/how_to/sweep.md")]
    assert main(make_data) == 0
    assert refused_for_its_metric_alone(sweep, capsys)


def test_the_commands_on_ray(beside_recipes, capsys):
    train, sweep = [shlex.split(line)[1:] for line in commands(PROJECT / "docs/how_to/ray.md")]
    assert train[0] == "train"
    assert main(["config", *train[1:], "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert [values[f"launch.{name}"] for name in ("engine", "num_processes", "max_restarts")] == ["ray", 2, 2]
    assert refused_for_its_metric_alone(sweep, capsys)
