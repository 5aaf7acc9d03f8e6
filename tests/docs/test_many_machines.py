"""The commands on the page about several processes, machines and clusters are run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import ready_python
from helpers import commands
from tunesmith.cli.main import main
from tunesmith.report.folder import read_json

PROJECT = Path(__file__).parents[2]


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", ready_python.python())  # what starts the processes
    number = 0
    for line in commands(PROJECT / "docs/how_to/many_machines.md"):
        program, *arguments = shlex.split(line)
        assert program == "tunesmith"
        assert main(arguments) == 0, line
        number += 1
    assert number == 5
    plan = read_json(tmp_path / "demo/two/run.json")["plan"]
    assert (plan["num_processes"], plan["global_batch_size"], plan["gradient_accumulation_steps"]) == (2, 16, 1)
    assert "#SBATCH --nodes=2" in capsys.readouterr().out
