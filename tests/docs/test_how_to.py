"""The commands of the pages on sweeps and Ray: run, shortened, or where running is tested elsewhere, checked."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from helpers import commands
from tunesmith.cli.main import main

PROJECT = Path(__file__).parents[2]
SHORT = ["--max_steps", "2", "--eval_steps", "2", "--eval_limit", "8", "--limit", "64"]


@pytest.fixture
def beside_recipes(tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_on_sweeps_run(beside_recipes):
    make_data, sweep = [shlex.split(line)[1:] for line in commands(PROJECT / "docs/how_to/sweep.md")]
    assert main(make_data) == 0
    assert main([*sweep, *SHORT]) == 0
    comparison = json.loads((beside_recipes / "demo/sweep/comparison.json").read_text())
    assert [trial["status"] for trial in comparison["trials"]] == ["finished"] * 2


def test_the_commands_on_ray_are_commands(beside_recipes, capsys):
    train, sweep = [shlex.split(line)[1:] for line in commands(PROJECT / "docs/how_to/ray.md")]
    assert train[0] == "train"
    assert main(["config", *train[1:], "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]
    assert [values[f"launch.{name}"] for name in ("engine", "num_processes", "max_restarts")] == ["ray", 2, 2]
    # every combination is checked before the metric, which nothing logs, is refused
    metric = sweep.index("--metric") + 1
    assert main([*sweep[:metric], "eval_accuracy", *sweep[metric + 1 :]]) == 2
    assert "evaluation.generate is off" in capsys.readouterr().err
